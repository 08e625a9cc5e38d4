"""What is printed never controls the terminal, whatever names files have."""

from __future__ import annotations

import os
import pty
import subprocess

import pytest
from PIL import Image
from rich.table import Table
from runs import ROOT, command

from rdn_fast.terminal import Bar, cell, print_line, print_table, printable

NAME = "a\x1b]0;title\x07\nb\x9b2J\u202e\u2028[red]c"
ESCAPED = "a\\x1b]0;title\\x07\\nb\\x9b2J\\u202e\\u2028[red]c"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (NAME, ESCAPED),
        ("caf\udce9", "caf\\xe9"),  # a byte that is not UTF-8
        ("\ud800\t\r\x7f", "\\ud800\\t\\r\\x7f"),
        ("日本 Müller \N{MAN}\N{ZERO WIDTH JOINER}\N{ROCKET} a\\b", None),
    ],
)
def test_printable(text, shown):
    assert printable(text) == (text if shown is None else shown)


def test_all_ways_to_print_escape(capsys):
    table = Table(title=cell(NAME), title_justify="left")
    table.add_row(cell(NAME))
    print_table(table)
    print_line(NAME)
    with Bar("bar", 1) as bar:
        bar.say(NAME)
    out = capsys.readouterr().out
    assert out.count(ESCAPED) == 4
    assert not {*NAME} & {*out} & {*"\x1b\x07\x9b\u202e\u2028"}


@pytest.mark.parametrize("name", [NAME, "b\udcff.png"])
def test_names_in_errors_and_progress(cli, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / f"{name}.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(folder / f"good {name}.png")
    for words in (
        ("upscale", "-i", folder, "-o", tmp_path / f"out {name}", "--device", "cpu"),
        ("upscale", "-i", folder / f"none {name}", "-o", tmp_path),
        ("prepare", "--images-dir", folder, "--output-path", tmp_path / f"{name}.h5"),
        ("eval", "--eval-file", folder, "--device", "cpu"),
        ("convert", folder / f"{name}.png", tmp_path / "a.pth"),
        ("train", "--train-file", folder / f"{name}.png"),
        ("train", f"--{name}"),
    ):
        ended = cli(*words)
        shown = ended.out + ended.err
        assert printable(name) in shown, shown
        for line in shown.splitlines():
            assert printable(line) == line
        assert ended.code == 1 or ended.err == "" or ended.user_error()


def test_names_beside_a_live_bar(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / f"{NAME}.png")
    screen, terminal = pty.openpty()
    words = command("upscale", "-i", tmp_path, "-o", tmp_path / "out", "--device", "cpu")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "200"}
    with subprocess.Popen(words, stdout=terminal, stderr=terminal, env=environment) as process:
        os.close(terminal)
        shown = b""
        try:
            while part := os.read(screen, 65536):
                shown += part
        except OSError:  # the end on Linux
            pass
    os.close(screen)
    assert process.returncode == 0, shown
    assert b"]0;title" in shown
    assert b"\x1b]0;title" not in shown
    assert b"\x9b2J" not in shown
