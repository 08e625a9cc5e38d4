"""The benchmark of `rdn-fast upscale`: its pictures, what is measured of the command, rows, gates and table."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bench_rows import make_row, short
from PIL import Image

from bench import process, report, results
from bench.cases import upscaling
from bench.cases.upscaling import Use
from bench.measure import Bench
from bench.models import words
from rdn_fast.weights.convert import read_weights
from rdn_fast.weights.shipped import select

CPU = torch.device("cpu")
TINY = {"PHOTOGRAPH": (100, 60), "FILES": 5, "EDGES": (16, 25)}
SHIPPED_MODEL = read_weights(select().file).config


@pytest.fixture(autouse=True, scope="module")
def tiny(tmp_path_factory):
    """Small pictures, and rows that go to a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUT", str(tmp_path_factory.mktemp("rows")))
        for name, value in TINY.items():
            patch.setattr(upscaling, name, value)
        yield


@pytest.fixture(scope="module")
def measured(tiny):
    """What a run of the case has left, by processes of its own."""
    bench = Bench("test", CPU, "naive")
    upscaling.run(bench, "upscale")
    return bench


@pytest.fixture
def told(monkeypatch):
    """told(*uses): rows of a run whose commands took that: photograph, then small files."""

    def run(*uses: Use) -> list[results.Row]:
        answers = iter(uses)
        monkeypatch.setattr(upscaling, "upscale", lambda *_: next(answers))
        bench = Bench("test", CPU, "naive")
        upscaling.run(bench, "upscale")
        return bench.results.rows

    return run


# ---- pictures


def test_the_photograph_is_a_jpeg_file_of_its_size(tmp_path):
    made = upscaling.photograph(tmp_path / "a")
    (file,) = made.folder.iterdir()
    assert made[1:] == (1, "60x100", 60 * 100)
    with Image.open(file) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (100, 60))
        pixels = np.asarray(image).astype(int)
    assert pixels.std() > 20  # light and dark
    assert 1 < np.abs(np.diff(pixels, axis=1)).mean() < 20  # and noise, but not noise alone
    upscaling.photograph(tmp_path / "b")
    assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()


def test_small_files_are_png_of_many_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(upscaling, "FILES", 60)
    made = upscaling.small_files(tmp_path / "a")
    sizes = []
    for file in made.folder.iterdir():
        with Image.open(file) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")
            sizes.append(image.size)
    assert made[1:] == (60, "16 to 24", sum(width * height for width, height in sizes))
    assert len(sizes) == 60
    assert (np.min(sizes), np.max(sizes)) == (16, 24)
    assert len(set(sizes)) > 20


# ---- what is measured of the command


@pytest.mark.slow
def test_pictures_through_the_command_fill_what_the_gates_read(measured):
    rows = measured.results.rows
    assert measured.failures == []
    assert [(row.case, row.shape) for row in rows] == [
        (case, f"{words(SHIPPED_MODEL)}, {sizes}")
        for case, sizes in (("photograph", "60x100"), ("small files", "16 to 24"))
    ]
    for row in rows:
        assert (row.recipe, row.kind, row.precision, row.ranks, row.rounds) == ("rdn_fast", "measured", "default", 1, 1)
        assert 0 < row.seconds == row.seconds_min == row.seconds_max < 60
        assert 0 < row.waited < 1  # the model has computed, and not all the time
        assert 50 < row.peak_mb < 3000  # torch alone is more than the one
        assert row.note == "peak of the whole process"
    judged = [gate.judge(rows, "cpu") for gate in upscaling.CASE.gates]
    assert [(verdict.row, verdict.value) for verdict in judged] == [
        (rows[0], rows[0].peak_mb),
        (rows[1], rows[1].waited),
    ]
    assert judged[0].word == "held"
    assert results.read(measured.results.path) == rows


def test_figures_of_a_row_are_those_of_the_command(told):
    photograph, small = told(Use(2.0, 1.5, 900_000_000, 0), Use(4.0, 3.9, 800_000_000, 0))
    assert (photograph.seconds, photograph.images_s, photograph.waited, photograph.peak_mb) == (2, 0.5, 0.25, 900)
    assert (small.seconds, small.images_s, small.waited, small.peak_mb) == (4, 5 / 4, 0.025, 800)
    macs = SHIPPED_MODEL.macs(60, 100)
    assert photograph.gflops == pytest.approx(2 * macs / 2.0 / 1e9, rel=1e-5)
    assert 5 * 16 * 16 <= small.gflops * 4e9 / (2 * macs / 6000) <= 5 * 24 * 24


def test_peak_memory_of_an_accelerator_is_its_own(told, monkeypatch):
    monkeypatch.setattr(upscaling.devices, "is_host", lambda device: False)
    row = told(Use(2.0, 1.5, 900_000_000, 300_000_000), Use(2.0, 1.5, 900_000_000, 300_000_000))[0]
    assert (row.peak_mb, row.note) == (300, "peak of the device; of the process 900 MB")


def test_computing_is_the_models_share_of_the_seconds(monkeypatch):
    now = [7.0]

    class Model:  # in the Upscaler's place
        def __call__(self, image):
            now[0] += 3
            return image

    def command(words: list[str]) -> int:
        assert words == ["upscale", "-i", "in", "-o", "out", "--device", "cpu"]
        now[0] += 1
        return Model()(Model()(0))

    monkeypatch.setattr(upscaling, "Upscaler", Model)
    monkeypatch.setattr(upscaling, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(upscaling, "main", command)
    use = upscaling.measure("cpu", "in", "out")
    assert (use.seconds, use.computing, use.allocated) == (7, 6, 0)
    assert use.resident > 50e6


def test_a_command_that_fails_is_told_with_its_last_words(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    last = r"^bench\.cases\.upscaling ended with 2: rdn-fast: error: .*broken\.png: not a picture"
    with pytest.raises(RuntimeError, match=last):
        upscaling.upscale(tmp_path / "in", tmp_path / "out", CPU)


def test_pictures_that_are_missing_are_noticed(tmp_path, monkeypatch):
    done = SimpleNamespace(returncode=0, stdout=json.dumps(Use(1.0, 0.5, 1, 0)), stderr="")
    monkeypatch.setattr(process.subprocess, "run", lambda *_, **__: done)
    pictures, out = upscaling.small_files(tmp_path / "in").folder, tmp_path / "out"
    out.mkdir()
    for made in range(5):
        with pytest.raises(RuntimeError, match=f"^upscale: {made} of 5 pictures made$"):
            upscaling.upscale(pictures, out, CPU)
        (out / str(made)).touch()
    assert upscaling.upscale(pictures, out, CPU) == Use(1.0, 0.5, 1, 0)


def test_a_photograph_that_fails_leaves_the_small_files_and_fails_the_run(monkeypatch, capsys):
    def upscale(pictures, *_):
        if pictures.name == "photograph":
            raise RuntimeError("upscale: 0 of 1 pictures made: Killed")
        return Use(4.0, 3.9, 800_000_000, 0)

    monkeypatch.setattr(upscaling, "upscale", upscale)
    bench = Bench("test", CPU, "naive")
    upscaling.run(bench, "upscale")
    assert [row.case for row in bench.results.rows] == ["small files"]
    assert bench.conclude("upscale", 0.0) == 1
    printed = capsys.readouterr().out
    assert "FAILED  upscale: 0 of 1 pictures made: Killed\n" in printed
    assert "FAILED  photograph of 12 megapixels, peak memory, MB: not measured\n" in printed
    idle = "1,000 small files: share of time without work for the model"
    assert f"held             {idle}: 0.025, gate at most 0.1\n" in printed


@pytest.mark.parametrize("place", ["cpu", "cpu+bf16", "cpu+amx", "h100", "npu"])
def test_pictures_are_judged_on_every_device(told, place):
    photograph, small = told(Use(2.0, 1.5, 900_000_000, 0), Use(4.0, 3.9, 800_000_000, 0))
    for row, column, verdicts in (
        (photograph, "peak_mb", {3 * 2**30 / 1e6: "held", 3222.0: "missed", None: "not measured"}),
        (small, "waited", {0.1: "held", 0.101: "missed", None: "not measured"}),
    ):
        for value, word in verdicts.items():
            (gate,) = (gate for gate in upscaling.CASE.gates if gate.case == row.case)
            assert gate.judge([dataclasses.replace(row, **{column: value})], place).word == word


# ---- the table


@pytest.fixture
def rows(told):
    """A run's rows with figures that are known."""
    run = {
        "device": "Some CPU, 2 threads",
        "torch": "2.13.0",
        "rdn_fast": "0.1.0",
        "date": "2026-01-02T03:04:05",
        "commit": "abc",
        "command": "python -m bench.run upscale",
    }
    uses = Use(12.34, 12.0, 1_234_500_000, 0), Use(40.0, 38.0, 800_000_000, 0)
    return [dataclasses.replace(row, **run, gflops=170.6) for row in told(*uses)]


HEADER = "**Some CPU, 2 threads**, torch 2.13.0, rdn_fast 0.1.0:\n\n"


def table(*runs) -> str:
    return short(report.block_tables("upscaling", list(runs)))


def test_the_table_has_the_figures(rows):
    assert table(rows) == HEADER + "\n".join(
        [
            "| case | LR pixels | seconds | images/s | GFLOP/s | peak memory | model without work | when |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            "| photograph | 60x100 | 12.3 | 0.081 | 171 | 1,234 MB | 2.8% | 2026-01-02 abc |",
            "| small files | 16 to 24 | 40.0 | 0.125 | 171 | 800 MB | 5.0% | 2026-01-02 abc |",
        ]
    )


def test_the_table_shows_the_newest_run_of_every_device(rows):
    newer = [dataclasses.replace(row, date="2026-02-02T00:00:00", seconds=9.0) for row in rows]
    other = [dataclasses.replace(row, device="Other") for row in rows]
    text = table(rows, other, newer)
    first, second = (part for part in text.split("\n\n") if part.startswith("|"))
    assert text.count("torch 2.13.0") == 2
    assert [line.split(" | ")[2] for line in first.splitlines()[2:]] == ["9.0", "9.0"]
    assert [line.split(" | ")[2] for line in second.splitlines()[2:]] == ["12.3", "40.0"]
    assert "2026-01-02" not in text.partition("**Other**")[0]


def test_without_pictures_the_block_says_not_measured(rows):
    refused = [dataclasses.replace(row, kind="not measured") for row in rows]
    for runs in ([], [[make_row()]], [refused]):
        assert table(*runs) == "not measured"
    block = "<!-- bench:upscaling -->\n\n{}\n\n<!-- /bench -->"
    before = block.format("old")
    empty = report.render(before, [], {}, "bench/figures")
    assert empty == block.format("not measured")
    assert short(report.render(empty, [[make_row()], rows], {}, "bench/figures")) == block.format(table(rows))


def test_thousands_are_written_without_an_exponent(rows):
    fast = make_row(
        case="end to end",
        device="H100",
        place="h100",
        dtype="float16",
        batch=64,
        images_s=4337.2,
        seed_images_s=12345.6,
    )
    assert "| 4337 (seed window 12346) |" in short(report.block_tables("speeds", [[fast]]))
    assert "| 3200 | 4337 | **4337** | H100 |" in short(report.gates_table([[fast]]))
    small = [dataclasses.replace(rows[1], images_s=speed) for speed in (999.4, 999.6, 1234.4)]
    assert [line.split(" | ")[3] for line in table(small).splitlines()[4:]] == [
        "999",
        "1000",
        "1234",
    ]


def test_the_gates_of_pictures_are_in_the_gates_table(rows):
    gates = short(report.gates_table([rows]))
    where = "Some CPU, 2 threads |"
    assert f"| photograph of 12 megapixels, peak memory, MB | at most 3221 |  | **1234** | {where}" in gates
    idle = "1,000 small files: share of time without work for the model"
    assert f"| {idle} | at most 0.1 |  | **0.05** | {where}" in gates
