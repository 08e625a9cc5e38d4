"""What is read of a run: whole, killed, damaged, empty."""

import json

import numpy as np
import pytest

from rdn_fast.errors import UserError
from rdn_fast.report.read import read_run
from rdn_fast.training.snapshot import new_sheet_path


def test_a_whole_run(make_run):
    run = read_run(str(make_run()))
    assert run.notes == []
    np.testing.assert_array_equal(run.steps["step"], np.arange(1, 301))
    np.testing.assert_allclose(run.steps["loss"], 1 / np.arange(1, 301))
    assert run.epochs["psnr_y"][-1] == 34 - 20 / 300
    assert [each.step for each in run.sheets] == [10, 300]
    assert run.last_step == 300
    assert run.bicubic_psnr == np.mean([each.bicubic_psnr for each in run.sheets[-1].measured])


def test_minutes_are_interpolated_and_extrapolated(make_run):
    run = read_run(str(make_run(steps=25)))  # half a second each; epochs end at 10 and 20
    np.testing.assert_allclose(run.minutes(np.array([0, 5, 15, 25])), np.array([0, 2.5, 7.5, 12.5]) / 60)
    assert read_run(str(make_run("short", steps=9))).minutes(np.zeros(1)) is None


def test_a_line_that_a_kill_has_cut_off(make_run):
    folder = make_run(more=[b'{"event": "step", "st'])
    run = read_run(str(folder))
    assert run.last_step == 300
    assert run.notes == ["the last line of metrics.jsonl is cut off: the run goes on, or was killed"]


def test_damaged_lines_are_counted_and_left_out(make_run):
    damaged = (
        b"\n", b"\xff\xfe\n", b"[1]\n", b'"step"\n', b"{}\n", b'{"event": 3, "step": 1}\n', b'{"event": "step"}\n',
        b'{"event": "step", "step": "5"}\n', b'{"event": "step", "step": true}\n', b'{"event": "step", "step": -1}\n',
        b'{"event": "step", "step": 1' + b"0" * 400 + b"}\n", b"[" * 100_000 + b"\n",
    )  # fmt: skip
    run = read_run(str(make_run(steps=10, more=damaged)))
    assert run.notes == [f"{len(damaged)} of {12 + len(damaged)} lines of metrics.jsonl are damaged and left out"]
    assert len(run.steps["step"]) == 10


@pytest.mark.parametrize("value", ["NaN", "Infinity", "null", '"x"', "[]", "1" + "0" * 400])
def test_values_that_are_no_finite_numbers_are_unknown(make_run, value):
    line = f'{{"event": "step", "step": 301, "lr": 0.5, "loss": {value}}}\n'
    run = read_run(str(make_run(more=[line.encode()])))
    assert run.notes == []
    assert np.isnan(run.steps["loss"][-1])
    assert run.steps["lr"][-1] == 0.5


def test_of_a_step_that_was_done_twice_the_last_one_counts(make_run):
    again = {"event": "step", "step": 7, "lr": 1e-3, "loss": 70.0, "skipped": True}
    run = read_run(str(make_run(steps=10, more=[{"event": "resume", "step": 6}, again])))
    np.testing.assert_array_equal(run.steps["step"], np.arange(1, 11))
    assert run.steps["loss"][6] == 70
    assert run.steps["skipped"][6] == 1
    assert [start["step"] for start in run.starts] == [0, 6]


def test_sheets_that_are_damaged_or_later_than_the_log_are_left_out(make_run):
    folder = make_run(steps=20, sheets=(10, 20, 40))
    path = new_sheet_path(folder, 20)
    path.write_bytes(path.read_bytes()[:-500])
    run = read_run(str(folder))
    assert [each.step for each in run.sheets] == [10]
    (note,) = run.notes
    assert note.startswith("step_00000020.png is left out: is no whole sheet")


def test_an_empty_log(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    run = read_run(str(tmp_path))
    assert run.notes == ["metrics.jsonl holds no step yet"]
    assert (run.last_step, run.sheets) == (0, [])


def test_folders_that_are_no_runs(tmp_path, make_run):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd" / "metrics.jsonl").mkdir(parents=True)
    for name, words in (
        ("missing", "no such folder"),
        ("file", "is a file"),
        ("empty", "metrics.jsonl: no such file"),
        ("odd", "metrics.jsonl: is a folder"),
    ):
        with pytest.raises(UserError, match=rf"{name}.*{words}; give the --outputs-dir of a training run"):
            read_run(str(tmp_path / name))


def test_records_of_other_kinds_are_passed_over(make_run):
    run = read_run(
        str(make_run(more=[{"event": "loss_scale", "step": 5, "loss_scale": 2}, {"event": "new", "step": 1}]))
    )
    assert run.notes == []
    assert json.loads(json.dumps(run.scales)) == [{"event": "loss_scale", "step": 5, "loss_scale": 2}]
