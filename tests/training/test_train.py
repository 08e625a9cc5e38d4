"""Training in this process: what a run writes, and what each setting does to the weights."""

import json
import math
import re
import resource
import threading
import time

import h5py
import numpy as np
import pytest
import torch
from runs import TINY, assert_same_run, assert_user_error, cli, events, make_data, weights

from rdn_fast import devices, rdb
from rdn_fast.cli import main
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from rdn_fast.precision import dtype_name
from rdn_fast.rdb import autotune
from rdn_fast.training import checkpoint, run_folder, validator
from rdn_fast.training import run as run_module
from rdn_fast.training.optimizer_step import HALVE_AFTER
from rdn_fast.training.run import MAX_SKIPS
from rdn_fast.training.validation import Validation


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def train(data, tmp_path, capsys):
    """Train by `naive` with flags in the folder `to`; returns it. `train.output` is what was printed."""

    def run(*flags, code=0, to="out"):
        out = tmp_path / to
        words = ("train", "--data-path", data, "--outputs-dir", out, *TINY, "--batch-size", 8, "--rdb", "naive", *flags)
        assert main([str(word) for word in words]) == code
        run.output = capsys.readouterr()
        return out

    return run


def test_a_run_writes_what_it_promises(train):
    out = train("--epochs", 3, "--eval-every", 2)
    steps, epochs = events(out, "step"), events(out, "epoch")
    assert [record["step"] for record in steps] == list(range(1, 10))  # 21 patches: 8 + 8 + 5
    assert [record["epoch"] for record in steps] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [record["epoch"] for record in epochs] == [0, 1, 2]
    assert ["psnr_y" in record for record in epochs] == [False, True, True]  # every second epoch, and the last
    assert steps[-1]["loss"] < steps[0]["loss"]
    for epoch in epochs:
        losses = [record["loss"] for record in steps if record["epoch"] == epoch["epoch"]]
        assert epoch["loss"] == pytest.approx(sum(losses) / len(losses))
        assert 0 < epoch["fps_end_to_end"] <= epoch["fps_seed_window"]
        assert epoch["data_wait_s"] >= 0
    seconds = [record["seconds"] for record in epochs]
    told = float(re.search(r"Duration sec : (.*)$", train.output.out, re.M)[1])
    assert 0 < seconds[0] < seconds[1] < seconds[2] <= told + 0.1
    best = max((record for record in epochs if "psnr_y" in record), key=lambda record: record["psnr_y_compat"])
    text = train.output.out
    assert re.findall(r"^epoch:(\d+) FPS: \d+\.\d{3}$", text, re.M) == ["0", "1", "2"]
    assert re.search(rf"^best epoch: {best['epoch']}, psnr: {best['psnr_y_compat']:.2f}$", text, re.M)
    assert f"{best['psnr_y']:.2f} dB" in text
    assert re.search(r"^Final Performance images/sec : \d+\.\d+$", text, re.M)
    assert re.search(rf"^Final Train Accuracy : {best['psnr_y_compat']:.2f}$", text, re.M)
    assert re.search(r"^E2E Training Duration sec : \d+\.\d+$", text, re.M)
    assert train.output.err == ""
    assert {path.name for path in out.iterdir()} >= {"best.pth", "last.pth", "checkpoints", "metrics.jsonl"}


@pytest.mark.parametrize("set_back", [0, 3600])  # seconds, of the clock before the resume
def test_tensorboard_shows_every_step_and_epoch_through_resumes(train, monkeypatch, set_back):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = train("--max-steps", 8, "--checkpoint-every", "1e-9")
    max(out.glob("checkpoints/step_*")).unlink()  # some steps are done again
    clock = time.time
    monkeypatch.setattr("time.time", lambda: clock() - set_back)
    train("--epochs", 4, "--resume", "auto")
    assert events(out, "resume")[0]["step"] < 8
    curves = accumulator.EventAccumulator(str(out / "tensorboard")).Reload()
    for kind, name in (("epoch", "psnr_y"), ("step", "loss"), ("step", "lr")):
        told = {record["step"]: pytest.approx(record[name], rel=1e-6) for record in events(out, kind)}
        drawn = [(point.step, point.value) for point in curves.Scalars(f"{kind}/{name}")]
        assert dict(drawn) == told
        assert sorted(dict(drawn)) == [*dict(drawn)]
        # An epoch that ended just before the checkpoint is told anew after the resume.
        assert len(drawn) <= len(told) + (kind == "epoch")


@pytest.mark.parametrize("level", [(), ("--opt-level", "O1", "--amp-dtype", "bf16")], ids=["default", "bf16"])
def test_last_weights_give_the_last_psnr_and_best_weights_the_best(train, data, tmp_path, monkeypatch, level):
    monkeypatch.setattr(devices, "has_instructions", lambda device, dtype: True)
    monkeypatch.setattr(rdb, "IMPLS", {"naive": rdb.IMPLS["naive"]})  # eval takes the fastest
    monkeypatch.setattr(autotune, "winners", {})
    out = train("--epochs", 3, *level)
    state = torch.load(max(out.glob("checkpoints/*")), weights_only=True)["progress"]
    best = {"psnr_y": state["best_psnr_canonical"], "psnr_y_compat": state["best_psnr"]}
    for name, told in (("last.pth", events(out, "epoch")[-1]), ("best.pth", best)):
        file = tmp_path / f"{name}.json"
        words = ("eval", "--weights-file", out / name, "--eval-file", data / "Set5_x2.h5", "--json", file)
        assert main([str(word) for word in words]) == 0
        mean = json.loads(file.read_text())["sets"][0]["mean"]
        for key in ("psnr_y", "psnr_y_compat"):
            assert mean[key] == pytest.approx(told[key], abs=1e-9)


def test_float32_decides_what_is_best_where_low_precision_validates(train, monkeypatch):
    monkeypatch.setattr(devices, "has_instructions", lambda device, dtype: True)
    # PSNR of each epoch; None: not measured. In epoch 2 low precision is no better than in epoch 1, in epoch 3 float32.
    scripted = {
        torch.bfloat16: [10.0, 11.0, 11.0, 12.0, math.nan, 11.5, 9.0],
        torch.float32: [10.1, 11.1, None, 10.9, 11.0, 11.6, 9.1],
    }
    left, measured = {dtype: iter(filter(None, psnrs)) for dtype, psnrs in scripted.items()}, []

    def validate(model, impl, pairs, ranks, in_touch, say, dtype, look):
        psnr = next(left[dtype])
        measured.append(dtype)
        return Validation(psnr, psnr, [psnr], 0, dtype_name(dtype))

    monkeypatch.setattr(validator, "validate", validate)
    out = train("--epochs", 7, "--opt-level", "O1", "--amp-dtype", "bf16", "--max-steps", 21)
    records = [(record["psnr_y"], record.get("psnr_dtype")) for record in events(out, "epoch")]
    told = [(10.1, None), (11.1, None), (11.0, "bfloat16"), (10.9, None), (11.0, None), (11.6, None), (9.1, None)]
    assert records == told
    assert measured.count(torch.bfloat16) == 7
    assert measured.count(torch.float32) == 6
    assert "best epoch: 5, psnr: 11.60\n" in train.output.out
    assert train.output.out.count("dB reference-compatible (bfloat16)\n") == 1


def test_training_learns(train):
    out = train("--epochs", 60, "--lr", "3e-3", "--lr-schedule", "cosine")
    psnr = [record["psnr_y"] for record in events(out, "epoch")]
    assert psnr[-1] > max(20, psnr[0] + 5)
    assert events(out, "epoch")[-1]["loss"] < 0.3 * events(out, "step")[0]["loss"]


def test_runs_repeat_and_the_seed_matters(train):
    first, again = (weights(train("--max-steps", 4, to=name)) for name in ("a", "b"))
    other = weights(train("--max-steps", 4, "--seed", 124, to="c"))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_max_steps_stops_in_the_middle_and_can_be_extended(train):
    whole = weights(train("--max-steps", 8, to="whole"))
    out = train("--max-steps", 4)
    assert [record["step"] for record in events(out, "step")] == [1, 2, 3, 4]
    train("--max-steps", 8, "--resume", "auto")
    assert [record["step"] for record in events(out, "step")] == list(range(1, 9))
    assert [record["step"] for record in events(out, "resume")] == [4]
    assert all(torch.equal(whole[key], value) for key, value in weights(out).items())


def test_resuming_a_finished_run_only_reports(train):
    before = weights(train("--epochs", 2))
    out = train("--epochs", 2, "--resume", "auto")
    assert "Final Performance images/sec : " in train.output.out
    assert "epoch:0 FPS" not in train.output.out
    assert all(torch.equal(before[key], value) for key, value in weights(out).items())


def test_weight_decay_and_clipping_reach_the_optimizer(train):
    plain = weights(train("--max-steps", 3, to="plain"))
    for flags in (("--weight_decay", "0.1"), ("--clip-grad", "1e-4")):
        changed = weights(train("--max-steps", 3, *flags, to=flags[0][2:]))
        assert not all(torch.equal(plain[key], changed[key]) for key in plain), flags


def test_ema_is_the_average_of_the_steps(train):
    steps = [weights(train("--max-steps", n, to=str(n))) for n in (1, 2, 3)]
    averaged = weights(train("--max-steps", 3, "--ema", "0.9", to="ema"))
    torch.manual_seed(123)
    expected = RDN(ModelConfig(2, 6, 4, 2, 2)).state_dict()
    for step, state in enumerate(steps):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = {key: decay * expected[key] + (1 - decay) * state[key] for key in expected}
    for key, value in averaged.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-7)


def test_fine_tuning_starts_from_the_weights(train):
    start = train("--max-steps", 3, to="start")
    tuned = train("--max-steps", 1, "--lr", "1e-12", "--weights-file", start / "last.pth", to="tuned")
    for key, value in weights(start).items():
        torch.testing.assert_close(weights(tuned)[key], value, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "flags",
    [
        ("--opt-level", "O1"),
        ("--apex_opt_level", "O2", "--loss_scale_value", "32"),
        ("--opt-level", "O1", "--amp-dtype", "fp16"),
    ],
)
def test_low_precision_stays_close_to_float32(train, flags):
    full = events(train("--max-steps", 6, "--opt-level", "O0", to="O0"), "step")
    low = events(train("--max-steps", 6, *flags, to="low"), "step")
    for a, b in zip(full, low, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.02)
    assert [a["loss"] for a in full] != [b["loss"] for b in low]  # it really was another precision


def test_overflowing_steps_are_skipped_and_counted_and_the_scale_is_halved_until_they_fit(train):
    out = train("--opt-level", "O1", "--amp-dtype", "fp16", "--loss-scale", 2.0**24, "--max-steps", 90, "--epochs", 90)
    records, halvings = events(out, "step"), events(out, "loss_scale")
    skipped = [record["step"] for record in records if record.get("skipped")]
    assert halvings
    assert [record["loss_scale"] for record in halvings] == [2.0 ** (23 - i) for i in range(len(halvings))]
    for record in halvings:  # each after a whole row of skipped steps
        assert set(range(record["step"] - HALVE_AFTER + 1, record["step"] + 1)) <= set(skipped)
        assert f"step {record['step']}: " in train.output.out
    assert len(skipped) < len(records)  # at last they fit
    assert all(math.isfinite(record["loss"]) for record in records)
    last = torch.load(out / "checkpoints/step_00000090.pt", weights_only=True)["progress"]
    assert (last["loss_scale"], last["skipped"]) == (halvings[-1]["loss_scale"], len(skipped))


def test_when_results_are_read_changes_nothing(train, monkeypatch):
    """After every step, a step later, or at the end of epochs only: the same steps, halvings, epochs and weights."""
    folders, flags = [], ("--opt-level", "O1", "--amp-dtype", "fp16", "--loss-scale", 2.0**24)
    for seconds in (0.0, math.inf):
        monkeypatch.setattr(run_module, "_READ_SECONDS", seconds)
        folders.append(train(*flags, "--epochs", 30, "--eval-every", 10, to=f"read {seconds}"))
    assert_same_run(*folders)
    assert events(folders[0], "loss_scale")


def test_a_resume_in_the_middle_of_a_row_of_overflows_is_exact(train):
    flags = ("--opt-level", "O2", "--amp-dtype", "fp16", "--loss-scale", 2.0**20, "--epochs", 90)
    whole = train(*flags, "--max-steps", 60, to="whole")
    parts = train(*flags, "--max-steps", HALVE_AFTER + 3, to="parts", code=1)  # no step of it counted
    assert "no step had finite gradients" in train.output.err
    train(*flags, "--max-steps", 60, "--resume", "auto", to="parts")
    assert events(parts, "loss_scale")
    assert [(r["step"], r["loss_scale"]) for r in events(parts, "loss_scale")] == [
        (r["step"], r["loss_scale"]) for r in events(whole, "loss_scale")
    ]
    assert (parts / "last.pth").read_bytes() == (whole / "last.pth").read_bytes()


def test_a_resume_may_change_the_loss_scale_and_says_so(train):
    flags = ("--opt-level", "O1", "--amp-dtype", "fp16", "--epochs", 9)
    train(*flags, "--loss-scale", 64, "--max-steps", 2)
    out = train(*flags, "--loss-scale", 32, "--max-steps", 4, "--resume", "auto")
    assert "loss_scale was 64.0, now 32.0" in train.output.out
    assert [record["loss_scale"] for record in events(out, "start") + events(out, "resume")] == [64, 32]


def test_another_loss_scale_begins_another_row_of_overflows(train):
    flags = ("--opt-level", "O2", "--amp-dtype", "fp16", "--epochs", 90)
    train(*flags, "--loss-scale", 2.0**60, "--max-steps", HALVE_AFTER - 1, code=1)
    out = train(*flags, "--loss-scale", 2.0**50, "--max-steps", 2 * HALVE_AFTER, "--resume", "auto", code=1)
    assert [(record["step"], record["loss_scale"]) for record in events(out, "loss_scale")] == [
        (2 * HALVE_AFTER - 1, 2.0**49)
    ]


def test_in_float32_it_is_the_same_run_whatever_would_scale_the_loss(train):
    train("--opt-level", "O0", "--max-steps", 2)
    train("--opt-level", "O0", "--max-steps", 3, "--amp-backend", "apex", "--loss-scale", 8, "--resume", "auto")
    assert "resumed at step 2" in train.output.out
    assert "not the run" not in train.output.out


def test_a_checkpoint_of_an_earlier_version_is_one_line(train, capsys):
    out = train("--max-steps", 2)
    file = next(out.glob("checkpoints/*"))
    state = torch.load(file, weights_only=True)
    del state["mode"]
    torch.save(state, file)
    train("--max-steps", 3, "--resume", file, code=2)
    assert (
        train.output.err
        == f"rdn-fast: error: {file}: is no training checkpoint of this version (weights go to --weights-file)\n"
    )


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf", "1e-50", "1e39", "many"])
def test_a_loss_scale_that_makes_no_sense(train, scale):
    train("--loss-scale-value", scale, code=2)
    assert train.output.err.startswith("rdn-fast: error: --loss-scale-value ")
    assert train.output.err.count("\n") == 1


def test_a_calibrated_loss_scale_is_said_stored_and_kept(train):
    flags = ("--opt-level", "O1", "--amp-dtype", "fp16", "--loss-scale-value", "auto", "--epochs", 9)
    whole = train(*flags, "--max-steps", 6, to="whole")
    (scale,) = [record["loss_scale"] for record in events(whole, "start")]
    assert f"loss scale auto: {scale:.10g}, " in train.output.out
    assert math.log2(scale) % 1 == 0
    assert scale > 1
    parts = train(*flags, "--max-steps", 4, to="parts")
    train(*flags, "--max-steps", 6, "--resume", "auto", to="parts")
    assert "loss scale auto" not in train.output.out  # it is the run's
    assert f"loss scale {scale:.10g} (torch)" in train.output.out
    assert events(parts, "resume")[0]["loss_scale"] == scale
    assert (parts / "last.pth").read_bytes() == (whole / "last.pth").read_bytes()


def test_a_calibrated_loss_scale_where_none_is_needed(train):
    out = train("--opt-level", "O2", "--amp-dtype", "bf16", "--loss-scale", "auto", "--max-steps", 1)
    assert [record["loss_scale"] for record in events(out, "start")] == [1]
    assert "loss scale auto: 1, because" in train.output.out
    out = train("--opt-level", "O0", "--loss-scale", "auto", "--max-steps", 1)
    assert [record["loss_scale"] for record in events(out, "start")] == [1]


@pytest.mark.parametrize(
    ("level", "skips"),
    [("O0", MAX_SKIPS), ("O1", HALVE_AFTER)],  # where there is a loss scale, to halve it would mend nothing
)
def test_divergence_names_the_steps_and_a_resume_mends_it(train, level, skips):
    level = "--opt-level", level
    good = weights(train("--epochs", 4, *level))
    out = train("--lr", "1e30", "--epochs", 40, "--resume", "auto", *level, code=1)
    assert "the loss itself is not finite" in train.output.err
    assert train.output.err.count("\n") == 1
    assert "lr was 0.001, now 1e+30" in train.output.out
    first = next(record["step"] for record in events(out, "step") if record.get("skipped"))
    assert f"steps {first} to {first + skips - 1}" in train.output.err
    kept = weights(out)  # nothing after them was worth keeping
    assert all(torch.equal(good[key], value) for key, value in kept.items())
    train("--lr", "1e-4", "--epochs", 5, "--resume", "auto", *level)
    assert "resumed at step 12" in train.output.out
    assert [record["step"] for record in events(out, "step")] == list(range(1, 16))


def test_a_run_in_which_no_step_counted_has_failed(train):
    train("--opt-level", "O1", "--amp-dtype", "fp16", "--loss-scale", "1e38", "--max-steps", 3, code=1)
    assert "no step had finite gradients" in train.output.err


def test_resume_from_a_named_checkpoint_leaves_nothing_stale(train):
    a, b = train("--max-steps", 4, to="a"), train("--max-steps", 6, to="b")

    def steps(out):
        return [checkpoint.checkpoint_step(path) for path in reversed(checkpoint.list_checkpoints(out / "checkpoints"))]

    # another run's checkpoint: what was here is another story
    train("--max-steps", 5, "--resume", next(a.glob("checkpoints/step_00000004.pt")), to="b")
    assert [record["step"] for record in events(b, "step")] == [5]
    assert max(steps(b)) == 5
    # one of its own: what came after it is set aside
    train("--max-steps", 6, "--resume", "auto", to="b")
    train("--max-steps", 6, "--resume", b / "checkpoints" / "step_00000005.pt", to="b")
    assert [record["step"] for record in events(b, "step")] == [5, 6]
    assert steps(b)[-2:] == [5, 6]
    assert len(list(b.glob("earlier-*/checkpoints/step_00000006.pt"))) >= 1


def test_resume_with_pictures_of_other_sizes_is_refused(train, data, tmp_path):
    train("--max-steps", 1)
    with h5py.File(data / "DIV2K_x2.h5") as file, h5py.File(tmp_path / "other.h5", "w") as other:
        for group, edge in (("lr", 30), ("hr", 60)):
            for name in file[group]:
                other[f"{group}/{name}"] = np.zeros((edge, edge, 3), np.uint8)
    words = "--data-path", "", "--train-file", tmp_path / "other.h5", "--eval-file", data / "Set5_x2.h5"
    train("--max-steps", 2, "--resume", "auto", *words, code=2)
    assert "a resume needs the settings of the checkpoint, but sizes_of_pictures was " in train.output.err


def test_resume_behind_the_end_is_refused(train):
    train("--max-steps", 5)
    train("--max-steps", 3, "--resume", "auto", code=2)
    assert "the checkpoint is at step 5" in train.output.err


def test_resume_takes_the_new_weight_decay(train):
    train("--max-steps", 3)
    plain = weights(train("--max-steps", 4, "--resume", "auto"))
    train("--max-steps", 3)
    decayed = weights(train("--max-steps", 4, "--resume", "auto", "--weight-decay", "10"))
    assert not all(torch.equal(plain[key], decayed[key]) for key in plain)


def test_a_killed_runs_half_written_files_are_removed(train, tmp_path):
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    rests = [
        tmp_path / "out" / ".best.pth.0123abcd.tmp",
        tmp_path / "out" / "checkpoints" / ".step_00000001.pt.89abcdef.tmp",
    ]
    kept = tmp_path / "out" / ".notes.tmp"
    for path in (*rests, kept):
        path.write_bytes(b"half")
    train("--max-steps", 1)
    assert not any(path.exists() for path in rests)
    assert kept.exists()


@pytest.mark.parametrize(("seconds", "often"), [("1000", False), ("1e-9", True)])
def test_checkpoints_go_by_the_clock_not_by_epochs(train, monkeypatch, seconds, often):
    """An epoch may be shorter than the writing of a checkpoint."""
    saved, put = [], checkpoint.CheckpointWriter.put

    def noted(self, path, *rest, **options):
        saved.append(path.name)
        put(self, path, *rest, **options)

    monkeypatch.setattr(checkpoint.CheckpointWriter, "put", noted)
    train("--epochs", 4, "--eval-every", 10, "--checkpoint-every", seconds)
    steps = [name for name in saved if name.endswith(".pt")]
    assert steps[-1] == "step_00000012.pt"
    assert (len(steps) > 1) == often


def test_a_run_that_dies_between_its_last_files_is_mended_by_a_resume(train, monkeypatch):
    flags = "--lr-step", 9, "--eval-every", 9, "--epochs", 9  # the same rate throughout, no best.pth
    whole = weights(train(*flags, "--max-steps", 4, to="whole"))
    train(*flags, "--max-steps", 2)
    written, write = [], checkpoint.atomic_write

    def dies(path, content):
        if path.name in ("last.pth", "step_00000004.pt"):
            if written:
                raise OSError("disk full")
            written.append(path)
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "atomic_write", dies)
        train(*flags, "--max-steps", 4, "--resume", "auto", code=1)
    assert written
    mended = weights(train(*flags, "--max-steps", 4, "--resume", "auto"))
    assert all(torch.equal(whole[key], value) for key, value in mended.items())


def test_a_mistyped_rdb_moves_no_file(train):
    out = train("--max-steps", 1)
    before = sorted(out.rglob("*"))
    train("--max-steps", 1, "--rdb", "wingrad", code=2)
    assert "--rdb wingrad is no implementation" in train.output.err
    assert sorted(out.rglob("*")) == before


def test_training_in_a_thread(train):
    """As programs with windows do. Signals reach the main thread alone."""
    thread = threading.Thread(target=train, args=("--max-steps", 1))
    thread.start()
    thread.join()
    assert "whole run" in train.output.out


def test_an_earlier_run_is_moved_aside_not_overwritten(train):
    out = train("--max-steps", 3)
    before = weights(out)
    train("--max-steps", 1)
    assert len(events(out, "step")) == 1
    (aside,) = out.glob("earlier-*")
    assert len(events(aside, "step")) == 3
    assert all(torch.equal(before[key], value) for key, value in weights(aside).items())


def test_resume_refuses_other_settings(train):
    train("--max-steps", 2)
    train("--max-steps", 4, "--resume", "auto", "--seed", "7", code=2)
    assert "seed was 123, now 7" in train.output.err


def test_two_runs_cannot_share_a_folder(tmp_path):
    held = run_folder.lock_folder(tmp_path)
    with pytest.raises(UserError, match="another run is writing there"):
        run_folder.lock_folder(tmp_path, patience=0)
    held.release()
    run_folder.lock_folder(tmp_path, patience=0).release()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [3_000, 30_000])
def test_full_disk_ends_the_run_and_keeps_the_checkpoint(data, tmp_path, limit):
    flags = ("train", "--data-path", data, "--outputs-dir", tmp_path, *TINY, "--batch-size", 8)
    assert main([*map(str, flags), "--epochs", "1"]) == 0
    before = {path: path.read_bytes() for path in tmp_path.glob("checkpoints/*")}
    assert before
    # 30 kB: room for the log and the weights but not for a checkpoint; 3 kB: for nothing
    limited = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731
    full = cli(*flags, "--epochs", 200, "--resume", "auto", preexec_fn=limited)
    assert full.returncode == 1, full
    assert "Traceback" not in full.stderr
    assert "cannot be written" in full.stderr or "File too large" in full.stderr
    for path, content in before.items():
        assert path.read_bytes() == content
    assert weights(tmp_path)
    assert weights(tmp_path, "best.pth")
    assert not list(tmp_path.rglob("*.tmp"))
    assert main([*map(str, flags), "--epochs", "2", "--resume", "auto"]) == 0


def test_unwritable_outputs(data, tmp_path):
    (tmp_path / "file").write_text("")
    assert_user_error(
        cli("train", "--data-path", data, *TINY, "--outputs-dir", tmp_path / "file" / "out"), "--outputs-dir"
    )


@pytest.mark.slow
def test_the_weights_of_every_second_epoch_are_kept(train):
    out = train("--epochs", 3, "--keep-every", 2, "--lr-step", 9, "--max-steps", 7)  # ends within the third epoch
    kept = weights(out, "epoch_2.pth")
    assert {path.name for path in out.glob("epoch_*")} == {"epoch_2.pth"}
    assert kept.keys() == weights(out).keys()
    assert not torch.equal(kept["sfe1.weight"], weights(out)["sfe1.weight"])
    for key, value in weights(train("--epochs", 2, "--lr-step", 9, to="two")).items():
        assert torch.equal(kept[key], value), key
    train("--epochs", 1, "--keep-every", 1, "--max-steps", 2)
    assert [path.name for path in out.glob("**/epoch_*")] == ["epoch_2.pth"]
    assert not (out / "epoch_2.pth").exists()  # moved aside with the rest of the run before


def test_a_run_without_a_better_psnr_is_stopped_early(train, monkeypatch):
    psnrs = iter([30.0, 31.0, 30.5, 30.9, 31.0, 31.2])

    def validate(*_):
        psnr = next(psnrs)
        return Validation(psnr, psnr, [psnr], 0, "float32")

    monkeypatch.setattr(validator, "validate", validate)
    flags = ("--opt-level", "O0", "--epochs", 9, "--early-stop", 3)
    out = train(*flags)
    assert len(events(out, "epoch")) == 5
    assert "stopped early: no better PSNR in 3 validations in a row\nbest epoch: 1, psnr: 31.00\n" in train.output.out
    train(*flags, "--resume", "auto")  # is over
    assert len(events(out, "epoch")) == 5
    train(*flags[:-1], 4, "--resume", "auto", "--max-steps", 18)
    assert [record["psnr_y"] for record in events(out, "epoch")][5:] == [31.2]


@pytest.mark.slow
def test_several_batches_a_step_train_as_one_batch_of_them_all(train):
    flags = ("--opt-level", "O0", "--max-steps", 5, "--lr", "1e-4")
    one = train("--batch-size", 8, *flags, to="one")
    several = train("--batch-size", 4, "--accumulate", 2, *flags, to="several")
    assert "1 x 2 x 4 patches of 8x8 per step" in train.output.out
    for a, b in zip(events(one, "step"), events(several, "step"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    for key, value in weights(one).items():
        torch.testing.assert_close(weights(several)[key], value, rtol=0, atol=1e-4)  # five steps of 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mse", "charbonnier"])
def test_other_losses_train(train, loss):
    out = train("--loss", loss, "--max-steps", 3, "--lr-warmup", 2)
    assert [record["lr"] for record in events(out, "step")] == pytest.approx([5e-4, 1e-3, 1e-3])
    assert "learning rate 0.001, rising over 2 steps, then times 0.1" in train.output.out
    assert events(out, "step")[0]["loss"] != events(train("--max-steps", 3, to="l1"), "step")[0]["loss"]


def test_early_stop_needs_a_validation_set(data, tmp_path, capsys):
    flags = ("--train-file", data / "DIV2K_x2.h5", "--outputs-dir", tmp_path / "o", *TINY, "--early-stop", 2)
    assert main(["train", *map(str, flags)]) == 2
    assert capsys.readouterr().err == (
        "rdn-fast: error: --early-stop 2: a run without validation has no PSNR; give --eval-file, too\n"
    )
