"""What a command writes takes the place of no input, and of no file that is not an earlier output of its kind."""

import os
import threading

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from rdn_fast import files
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.model import RDN


@pytest.fixture
def folder(tmp_path, monkeypatch, photograph):
    """tmp_path, with pictures in set/, weights w.pth, a checkpoint run.pth, t.h5, notes.txt, a script and run/."""
    monkeypatch.setattr("rdn_fast.model.resolve_impl", lambda name, case: "sliced")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    for i in range(2):
        Image.fromarray(photograph(32, 32, i)).save(f"set/{i}.png")
    state = RDN(ModelConfig(2, 6, 4, 2, 2)).state_dict()
    torch.save(state, "w.pth")
    torch.save({"step": 7, "model": state, "optimizer": {"state": {}}}, "run.pth")
    with h5py.File("t.h5", "w") as file:
        for group, edge in (("lr", 16), ("hr", 32)):
            file[f"{group}/0"] = np.zeros((edge, edge, 3), np.uint8)
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"event": "start", "step": 0}\n')
    (tmp_path / "script.json").write_text('{"scripts": {}}')
    return tmp_path


COMMANDS = {
    "prepare": ("prepare", "--images-dir", "set", "--output-path"),
    "repack": ("prepare", "--repack", "t.h5"),
    "convert": ("convert", "w.pth"),
    "export": ("export", "-w", "w.pth", "-o"),
    "report": ("report", "run", "-o"),
    **{
        kind: ("eval", "-w", "w.pth", "--eval-file", "t.h5", "--device", "cpu", f"--{kind}")
        for kind in ("json", "csv", "markdown", "figure")
    },
}
TAKEN = {"set/0.png", "w.pth", "run.pth", "t.h5", "notes.txt", "script.json"}
OWN = {"prepare": {"t.h5"}}  # an HDF5 file that is no input may be an earlier output


@pytest.mark.parametrize("command", COMMANDS)
def test_no_other_file_is_replaced(cli, folder, command):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(TAKEN - OWN.get(command, set())):
        message = cli(*COMMANDS[command], name).user_error()
        assert name in message
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before, name


@pytest.mark.parametrize("suffix", [".pth", ".onnx", ".png", ".json", ".h5"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_file_of_another_kind_is_replaced_whatever_its_name(cli, folder, command, suffix):
    for i, content in enumerate((b"notes", (folder / "set/0.png").read_bytes(), (folder / "run.pth").read_bytes())):
        path = folder / f"{i}{suffix}"
        path.write_bytes(content)
        assert path.name in cli(*COMMANDS[command], path).user_error()
        assert path.read_bytes() == content


RESULTS = {"prepare": "o.h5", "repack": "o.h5", "convert": "o.pth", "export": "o.onnx", "figure": "o.png"}


@pytest.mark.parametrize("command", COMMANDS)
def test_earlier_outputs_and_empty_files_are_replaced(cli, folder, command):
    name = RESULTS.get(command, "o.txt")
    if command == "export":
        pytest.importorskip("onnxruntime")
    (folder / name).write_bytes(b"")
    for _ in range(2):
        before = (folder / name).stat().st_ino
        ended = cli(*COMMANDS[command], name)
        assert (ended.code, ended.err) == (0, "")
        assert (folder / name).stat().st_ino != before


def test_images_of_eval_replace_no_picture_of_others(cli, folder):
    (folder / "pictures" / "t").mkdir(parents=True)
    photograph = folder / "pictures" / "t" / "0.png"
    photograph.write_bytes((folder / "set/0.png").read_bytes())
    flags = ("eval", "-w", "w.pth", "--eval-file", "t.h5", "--device", "cpu", "--save-images")
    message = cli(*flags, "pictures").user_error()
    assert str(photograph.relative_to(folder)) in message
    assert photograph.read_bytes() == (folder / "set/0.png").read_bytes()
    for _ in range(2):
        assert cli(*flags, "out").code == 0


def test_devices_and_pipes_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a device or a pipe"):
        files.atomic_write(tmp_path / "pipe", lambda file: file.write(b"x"))
    with pytest.raises(UserError, match=r"pipe: is there already"):
        files.check_replaceable(tmp_path / "pipe", files.Kind("a report", lambda head: True), "pipe")


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "none"])
def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch, links):
    if not links:

        def link(*_):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    files.atomic_write(tmp_path / "new", lambda file: file.write(b"ours"), replace=False)
    assert (tmp_path / "new").read_bytes() == b"ours"

    def write(file):
        file.write(b"ours")
        (tmp_path / "late").write_bytes(b"theirs")

    with pytest.raises(FileExistsError):
        files.atomic_write(tmp_path / "late", write, replace=False)
    assert (tmp_path / "late").read_bytes() == b"theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["late", "new"]


def test_one_of_many_writers_wins(tmp_path):
    won = []

    def write(i):
        try:
            files.atomic_write(tmp_path / "a", lambda file: file.write(bytes([i])), replace=False)
        except FileExistsError:
            return
        won.append(i)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [bytes([i]) for i in won] == [(tmp_path / "a").read_bytes()]


def test_processes_of_one_number_write_beside_each_other(tmp_path, monkeypatch):
    """Containers that share a folder count their processes from 1."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    target = tmp_path / "result"
    with files.atomic_path(target) as first:
        first.write_text("first")
        files.atomic_write(target, lambda file: file.write(b"second"))
        assert target.read_text() == "second"
    assert target.read_text() == "first"
    assert os.listdir(tmp_path) == ["result"]
