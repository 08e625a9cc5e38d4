"""Several ranks train as one rank with the whole batch, and a run that ends early says why."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from runs import TINY, assert_user_error, cli, command, events, make_data, weights
from waiting import PATIENCE

from rdn_fast import RDN, ModelConfig, devices
from rdn_fast.cli import main
from rdn_fast.data.h5 import PairedH5
from rdn_fast.rdb import able
from rdn_fast.training import launch

TEN_STEPS = (*TINY, *shlex.split("--epochs 4 --max-steps 10 --lr 1e-4 --opt-level O0 --rdb sliced"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    # Batches of 8, 8 and 1: the last share of one rank is empty.
    return make_data(tmp_path_factory.mktemp("data"), images=17)


def train(data, outputs, *flags) -> list[str]:
    return ["train", *map(str, ("--data-path", data, "--outputs-dir", outputs, *flags))]


@pytest.fixture(scope="module")
def two_ranks(data, tmp_path_factory):
    """The outputs of ten steps on two ranks with batch 4."""
    outputs = tmp_path_factory.mktemp("two")
    result = cli(*train(data, outputs, *TEN_STEPS, "--batch-size", 4, "--nproc", 2))
    assert result.returncode == 0, result
    assert result.stderr == ""
    return outputs


def test_two_ranks_equal_one_with_twice_the_batch(data, two_ranks, tmp_path):
    assert main(train(data, tmp_path, *TEN_STEPS, "--batch-size", 8)) == 0
    ours, theirs = events(two_ranks, "step"), events(tmp_path, "step")
    assert len(ours) == len(theirs) == 10
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True)) < 1e-6
    one = weights(tmp_path)
    assert max((value - one[key]).abs().max() for key, value in weights(two_ranks).items()) < 1e-5
    torch.manual_seed(123)
    initial = RDN(ModelConfig(2, 6, 4, 2, 2)).state_dict()
    assert max((one[key] - value).abs().max() for key, value in initial.items()) > 5e-4  # the weights were trained
    for a, b in zip(events(two_ranks, "epoch"), events(tmp_path, "epoch"), strict=True):
        assert a["psnr_y"] == pytest.approx(b["psnr_y"], abs=1e-3)  # validation images are divided among the ranks


@pytest.mark.slow
def test_rank_0_chooses_the_impl_for_all(data, tmp_path):
    result = cli(*train(data, tmp_path, *TINY, "--batch-size", 4, "--max-steps", 4, "--nproc", 2))
    assert result.returncode == 0, result
    [start] = events(tmp_path, "start")
    assert {*start["rdb"].values()} <= {impl.name for impl in able(torch.device("cpu"), torch.float32, True)}
    assert torch.load(next(tmp_path.glob("checkpoints/*")), weights_only=True)["rows"] == start["rdb"]


@pytest.mark.slow
def test_plain_torchrun_works_as_well(data, two_ranks, tmp_path):
    torchrun = [sys.executable, *shlex.split("-m torch.distributed.run --standalone --nproc-per-node 2")]
    rdn_fast = [*command()[1:], *train(data, tmp_path, *TEN_STEPS, "--batch-size", 4)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(torchrun + rdn_fast, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result
    assert (tmp_path / "last.pth").read_bytes() == (two_ranks / "last.pth").read_bytes()
    assert len(re.findall(r"^Final Performance images/sec : ", result.stdout, re.M)) == 1  # only rank 0 prints


def test_more_ranks_than_devices(data, monkeypatch, capsys):
    for kind, available, words in (("cpu", 1, "1 CPU core and no accelerator"), ("cuda", 4, "4 cuda devices")):
        monkeypatch.setattr(devices, "resolve", lambda _, kind=kind: kind)
        for module in (devices, devices.select):
            monkeypatch.setattr(module, "count", lambda _, available=available: available)
        assert main(["train", "--data-path", str(data), "--nproc", "8"]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert f"--nproc {available}" in err
        assert err.count("\n") == 1


def test_wrong_flags_are_found_before_ranks_start(data, tmp_path):
    assert_user_error(cli("train", "--data-path", tmp_path, "--nproc", 2), "DIV2K_x2.h5", "no such file")
    for flags, *words in (("--patch-size 99", "--patch-size"), ("--device-id 0", "--device-id 0", "give no index")):
        assert_user_error(cli("train", "--data-path", data, *flags.split(), "--nproc", 2), *words)


def test_wrong_data_is_found_before_ranks_start(data, tmp_path, make_h5, monkeypatch, capsys):
    pairs = PairedH5(data / "DIV2K_x2.h5", 2)
    compressed = make_h5(tmp_path / "compressed.h5", [pair[1:] for pair in pairs], compression="gzip")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(launch, "elastic_launch", None)  # must not be called
    for flags, words in (
        (
            ("--train-file", compressed, "--data-mode", "mmap"),
            (str(compressed), "--data-mode mmap", "prepare --repack"),
        ),
        (("--train-dir", empty), (f"--train-dir {empty}: ", "holds no files")),
        (("--data-path", data, "--drop-last", "--batch-size", 9), ("--drop-last", "batch of 18", "--batch-size")),
    ):
        assert main(["train", *map(str, flags), "--outputs-dir", str(tmp_path / "out"), *TINY, "--nproc", "2"]) == 2
        err = capsys.readouterr().err
        assert err.startswith("rdn-fast: error: ")
        assert err.count("\n") == 1
        assert all(word in err for word in words), err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("damaged", "no checkpoint there can be read"),
        ("unwritable", "cannot be written"),
        ("other settings", "seed was 123, now 4"),
    ],
)
@pytest.mark.slow
def test_user_error_that_only_the_ranks_find_is_one_line(data, two_ranks, tmp_path, mistake, message):
    outputs = tmp_path / "out"
    if mistake == "unwritable":
        outputs.write_text("")
    elif mistake == "damaged":
        (outputs / "checkpoints").mkdir(parents=True)
        (outputs / "checkpoints" / "step_00000001.pt").write_bytes(b"broken")
    else:
        shutil.copytree(two_ranks, outputs)
    flags = shlex.split("--batch-size 4 --opt-level O0 --resume auto --nproc 2")
    seed = ("--seed", 4) if mistake == "other settings" else ()
    assert_user_error(cli(*train(data, outputs, *TINY, *flags, *seed)), message)


def start_run(data, outputs):
    """Start a run on two ranks; after its second epoch return its process and the process ids of its ranks."""
    flags = (*TINY, "--epochs", 100_000, "--checkpoint-every", "0.2", "--nproc", 2)
    process = subprocess.Popen(
        command(*train(data, outputs, *flags)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while "epoch:1 " not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    children = ["ps", "-o", "pid=", "--ppid", str(process.pid)]
    ranks = subprocess.run(children, capture_output=True, text=True, check=True).stdout.split()
    assert len(ranks) == 2
    return process, [int(pid) for pid in ranks]


def end_within(pids):
    """Return whether all the processes end within PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    states = ["ps", "-o", "stat=", "-p", ",".join(map(str, pids))]
    while time.monotonic() < deadline:
        alive = subprocess.run(states, capture_output=True, text=True, check=False).stdout.split()
        if all(state.startswith("Z") for state in alive):
            return True
        time.sleep(0.1)
    return False


def test_killed_rank_ends_the_run(data, tmp_path):
    process, ranks = start_run(data, tmp_path)
    os.kill(ranks[1], signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "killed by signal 9; go on with --resume auto" in err
    assert "Traceback" not in err
    assert end_within(ranks)


@pytest.mark.slow
def test_killed_launcher_leaves_no_rank_behind(data, tmp_path):
    process, ranks = start_run(data, tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    assert end_within(ranks)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)])
def test_stopped_launcher_saves(data, tmp_path, number, to_all):
    process, ranks = start_run(data, tmp_path)
    # A terminal or a container signals all processes; the launcher then signals its ranks again.
    for pid in (process.pid, *(ranks if to_all else ())):
        os.kill(pid, number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert err == ""
    saved = int(out.split("saved at step ")[1].split(";")[0])
    assert [record["step"] for record in events(tmp_path, "step")] == list(range(1, saved + 1))
    assert end_within(ranks)
