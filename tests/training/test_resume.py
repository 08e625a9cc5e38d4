"""A run that is killed and resumed is bit for bit the uninterrupted one, and logs no step twice."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from runs import TINY, assert_same_run, cli, command, events, kill, make_data
from waiting import PATIENCE

from bench.parity import SLACK, relative_error
from rdn_fast.cli import main
from rdn_fast.rdb import able


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def run(data: Path, out: Path, *flags) -> list[str]:
    recipe = ("--batch-size", 4, "--eval-every", 50, "--ema", "0.9", "--clip-grad", "1")
    return command("train", "--data-path", data, "--outputs-dir", out, *TINY, *recipe, *flags)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stop_signal_saves_and_says_how_to_go_on(data, tmp_path, number):
    whole, out = tmp_path / "whole", tmp_path / "out"
    flags = ("--epochs", 100_000, "--checkpoint-every", 1000, "--num-workers", 3, "--opt-level", "O0", "--rdb", "naive")
    process = subprocess.Popen(
        run(data, out, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while "epoch:1 " not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    told, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert err == ""
    assert not subprocess.run(["ps", "-o", "pid=", "--sid", str(process.pid)], capture_output=True, check=False).stdout
    saved = int(told.split("saved at step ")[1].split(";")[0])
    assert "--resume auto" in told
    assert [record["step"] for record in events(out, "step")] == list(range(1, saved + 1))
    state = torch.load(max(out.glob("checkpoints/*")), weights_only=True)
    assert state["step"] == saved
    for folder in (whole, out):
        assert main(run(data, folder, *flags, "--max-steps", saved + 8, "--resume", "auto")[3:]) == 0
    assert [record["step"] for record in events(out, "resume")] == [saved]
    assert (out / "last.pth").read_bytes() == (whole / "last.pth").read_bytes()


@pytest.mark.slow
def test_stops_in_the_middle_of_an_epoch_and_resumes(data, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(run(data, whole, "--epochs", 60)[3:]) == 0
    for steps in (8, 15, 16):  # 6 steps an epoch
        assert main(run(data, out, "--epochs", 60, "--max-steps", steps, "--resume", "auto")[3:]) == 0
    assert main(run(data, out, "--epochs", 60, "--resume", "auto")[3:]) == 0
    assert [record["step"] for record in events(out, "resume")] == [8, 15, 16]
    assert [record["step"] for record in events(out, "step")] == list(range(1, 361))
    assert (out / "last.pth").read_bytes() == (whole / "last.pth").read_bytes()


def test_auto_keeps_to_the_checkpoints_implementation(data, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(run(data, whole, "--epochs", 4, "--opt-level", "O0", "--rdb", "summed")[3:]) == 0
    assert main(run(data, out, "--epochs", 4, "--opt-level", "O0", "--rdb", "summed", "--max-steps", 8)[3:]) == 0
    assert main(run(data, out, "--epochs", 4, "--opt-level", "O0", "--resume", "auto")[3:]) == 0
    assert [record["rdb"]["training"] for kind in ("start", "resume") for record in events(out, kind)] == [
        "summed",
        "summed",
    ]
    assert (out / "last.pth").read_bytes() == (whole / "last.pth").read_bytes()


@pytest.mark.parametrize(
    "impl", [impl.name for impl in able(torch.device("cpu"), torch.float32, True) if impl.name != "naive"]
)
def test_another_implementation_goes_on_with_the_same_losses(data, tmp_path, impl, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    flags = ("--epochs", 6, "--opt-level", "O0")
    assert main(run(data, whole, *flags, "--rdb", "naive")[3:]) == 0
    assert main(run(data, out, *flags, "--rdb", "naive", "--max-steps", 16)[3:]) == 0
    capsys.readouterr()
    assert main(run(data, out, *flags, "--rdb", impl, "--resume", "auto")[3:]) == 0
    assert f"--rdb for training was naive, now {impl}" in capsys.readouterr().out
    ours, theirs = (torch.tensor([record["loss"] for record in events(folder, "step")]) for folder in (out, whole))
    assert ours.shape == theirs.shape == (36,)
    assert relative_error(ours, theirs) <= SLACK[torch.float32]


def kill_and_resume(data: Path, tmp_path: Path, kills: int, steps: int, *flags) -> None:
    """Run `steps` steps with `kills` kills -9 at random moments, and compare with a run that nobody disturbed."""
    chance = random.Random()
    flags = ("--epochs", 100_000, "--max-steps", steps, "--checkpoint-every", "0.2", *flags)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert cli(*run(data, whole, *flags)[3:], timeout=600).returncode == 0
    began, done, after_saves = time.monotonic(), 0, 0
    while done < kills:
        process = subprocess.Popen(
            run(data, out, *flags, "--resume", "auto"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        seen = set(out.glob("checkpoints/*.pt"))
        deadline = time.monotonic() + (
            120 if not done or chance.random() < 0.8 else chance.uniform(0, 4)
        )  # some die while they start
        while process.poll() is None and set(out.glob("checkpoints/*.pt")) <= seen and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5))
        assert process.poll() is None, (done, process.communicate()[1])  # the run must not be over yet
        after_saves += not set(out.glob("checkpoints/*.pt")) <= seen
        kill(process)
        done += 1
    assert cli(*run(data, out, *flags, "--resume", "auto")[3:], timeout=600).returncode == 0
    resumed = [record["step"] for record in events(out, "resume")]
    print(f"{kills} kills in {time.monotonic() - began:.0f} s, resumed at steps {resumed} of {steps}")
    assert (
        len(resumed) >= after_saves > 0
    )  # each was the end of a run that had told how it began, but for the first, whose heir tells
    assert all(step > 0 for step in resumed)
    assert resumed == sorted(resumed)
    assert [record["step"] for record in events(out, "step")] == list(range(1, steps + 1))
    assert_same_run(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "kills"), [(1, 20), (2, 10)])
@pytest.mark.parametrize(
    ("share", "precision"),
    [(1, ("--opt-level", "O0")), (4, ("--opt-level", "O1", "--amp-dtype", "bf16"))],
    ids=["O0", "O1"],
)
def test_many_kills(data, tmp_path, ranks, kills, share, precision):
    kills //= share
    kill_and_resume(data, tmp_path, kills, 250 * kills, *precision, "--nproc", ranks)
