"""Several ranks: the same training as one rank with the whole batch, and endings that tell what happened."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from runs import TINY, assert_user_error, cli, command, events, make_data, weights

from rdn_fast import devices
from rdn_fast.cli import main
from rdn_fast.data.h5 import PairedH5
from rdn_fast.rdb import able
from rdn_fast.training import launch


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(
        tmp_path_factory.mktemp("data"), images=17
    )  # batches of 8, 8 and 1: one rank's last share is empty


@pytest.fixture(scope="module")
def two_ranks(data, tmp_path_factory):
    """The folder of ten steps on two ranks with batch 4."""
    out = tmp_path_factory.mktemp("two")
    flags = (
        "--batch-size",
        4,
        "--epochs",
        4,
        "--max-steps",
        10,
        "--lr",
        "1e-4",
        "--opt-level",
        "O0",
        "--rdb",
        "winograd",
    )
    result = cli("train", "--data-path", data, "--outputs-dir", out, *TINY, *flags, "--nproc", 2)
    assert result.returncode == 0, result
    assert result.stderr == ""
    return out


def test_two_ranks_equal_one_with_twice_the_batch(data, two_ranks, tmp_path):
    flags = (
        "--batch-size",
        8,
        "--epochs",
        4,
        "--max-steps",
        10,
        "--lr",
        "1e-4",
        "--opt-level",
        "O0",
        "--rdb",
        "winograd",
    )
    assert main(["train", "--data-path", str(data), "--outputs-dir", str(tmp_path), *TINY, *map(str, flags)]) == 0
    ours, theirs = events(two_ranks, "step"), events(tmp_path, "step")
    assert len(ours) == len(theirs) == 10
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True)) < 1e-6
    one = weights(tmp_path)
    assert max((value - one[key]).abs().max() for key, value in weights(two_ranks).items()) < 1e-5
    torch.manual_seed(123)
    moved = max((one[key] - value).abs().max() for key, value in initial().items())
    assert moved > 5e-4  # the comparison is of something that was trained
    for a, b in zip(events(two_ranks, "epoch"), events(tmp_path, "epoch"), strict=True):
        assert a["psnr_y"] == pytest.approx(b["psnr_y"], abs=1e-3)  # validation is shared out over the ranks


@pytest.mark.slow
def test_the_first_rank_chooses_for_all(data, tmp_path):
    result = cli(
        "train",
        "--data-path",
        data,
        "--outputs-dir",
        tmp_path,
        *TINY,
        "--batch-size",
        4,
        "--max-steps",
        4,
        "--nproc",
        2,
    )
    assert result.returncode == 0, result
    chosen = {name for record in events(tmp_path, "start") for name in record["rdb"].values()}
    assert chosen <= {row.name for row in able(torch.device("cpu"), torch.float32, True)}
    assert (
        torch.load(next(tmp_path.glob("checkpoints/*")), weights_only=True)["rows"]
        == events(tmp_path, "start")[0]["rdb"]
    )


def initial():
    from rdn_fast import RDN, ModelConfig

    return RDN(ModelConfig(2, 6, 4, 2, 2)).state_dict()


@pytest.mark.slow
def test_plain_torchrun_works_as_well(data, two_ranks, tmp_path):
    words = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *command()[1:],
        "train",
        "--data-path",
        data,
        "--outputs-dir",
        tmp_path,
    )
    flags = (
        "--batch-size",
        4,
        "--epochs",
        4,
        "--max-steps",
        10,
        "--lr",
        "1e-4",
        "--opt-level",
        "O0",
        "--rdb",
        "winograd",
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *map(str, (*words, *TINY, *flags))],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result
    assert (tmp_path / "last.pth").read_bytes() == (two_ranks / "last.pth").read_bytes()
    assert len(re.findall(r"^Final Performance images/sec : ", result.stdout, re.M)) == 1  # only the first rank speaks


def test_more_ranks_than_devices(data, monkeypatch, capsys):
    for kind, have, words in (("cpu", 1, "1 CPU core and no accelerator"), ("cuda", 4, "4 cuda devices")):
        monkeypatch.setattr(devices, "resolve", lambda _, kind=kind: kind)
        for home in (devices, devices.select):
            monkeypatch.setattr(home, "count", lambda _, have=have: have)
        assert main(["train", "--data-path", str(data), "--nproc", "8"]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert f"--nproc {have}" in err
        assert err.count("\n") == 1


def test_mistakes_are_found_before_ranks_start(data, tmp_path):
    assert_user_error(cli("train", "--data-path", tmp_path, "--nproc", 2), "DIV2K_x2.h5", "no such file")
    assert_user_error(cli("train", "--data-path", data, "--patch-size", 99, "--nproc", 2), "--patch-size")
    assert_user_error(
        cli("train", "--data-path", data, "--device-id", 0, "--nproc", 2), "--device-id 0", "give no index"
    )


def test_mistakes_in_the_data_are_found_before_ranks_start(data, tmp_path, make_h5, monkeypatch, capsys):
    pairs = PairedH5(data / "DIV2K_x2.h5", 2)
    compressed = make_h5(tmp_path / "compressed.h5", zip(pairs.lr, pairs.hr, strict=True), compression="gzip")
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(launch, "elastic_launch", None)  # not called
    for flags, words in (
        (
            ("--train-file", compressed, "--data-mode", "mmap"),
            (str(compressed), "--data-mode mmap", "prepare --repack"),
        ),
        (("--train-dir", tmp_path / "empty"), (f"--train-dir {tmp_path / 'empty'}: ", "holds no files")),
        (("--data-path", data, "--drop-last", "--batch-size", 9), ("--drop-last", "batch of 18", "--batch-size")),
    ):
        assert main(["train", *map(str, flags), "--outputs-dir", str(tmp_path / "out"), *TINY, "--nproc", "2"]) == 2
        err = capsys.readouterr().err
        assert err.startswith("rdn-fast: error: ")
        assert err.count("\n") == 1
        assert all(word in err for word in words), err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mistake", ["damaged", "unwritable", "other settings"])
@pytest.mark.slow
def test_a_mistake_that_only_the_ranks_meet_is_one_line(data, two_ranks, tmp_path, mistake):
    out = tmp_path / "out"
    flags = {"damaged": (), "unwritable": (), "other settings": ("--seed", 4)}[mistake]
    words = {
        "damaged": "no checkpoint there can be read",
        "unwritable": "cannot be written",
        "other settings": "seed was 123, now 4",
    }[mistake]
    if mistake == "unwritable":
        out.write_text("")
    elif mistake == "damaged":
        (out / "checkpoints").mkdir(parents=True)
        (out / "checkpoints" / "step_00000001.pt").write_bytes(b"broken")
    else:
        shutil.copytree(two_ranks, out)
    result = cli(
        "train",
        "--data-path",
        data,
        "--outputs-dir",
        out,
        *TINY,
        *flags,
        "--batch-size",
        4,
        "--opt-level",
        "O0",
        "--resume",
        "auto",
        "--nproc",
        2,
    )
    assert_user_error(result, words)


def started(data, out):
    """A run on two ranks that is under way, and the process ids of its ranks."""
    flags = ("--epochs", 100_000, "--checkpoint-every", "0.2", "--nproc", 2)
    process = subprocess.Popen(
        command("train", "--data-path", data, "--outputs-dir", out, *TINY, *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "epoch:1 " not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    ranks = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(ranks) == 2
    return process, [int(pid) for pid in ranks]


def gone(pids, seconds=60.0):
    """Whether all the processes end within the time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        alive = subprocess.run(
            ["ps", "-o", "stat=", "-p", ",".join(map(str, pids))], capture_output=True, text=True, check=False
        ).stdout.split()
        if all(state.startswith("Z") for state in alive):
            return True
        time.sleep(0.1)
    return False


def test_a_killed_rank_ends_the_run(data, tmp_path):
    process, ranks = started(data, tmp_path)
    os.kill(ranks[1], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "killed by signal 9; go on with --resume auto" in err
    assert "Traceback" not in err
    assert gone(ranks)


@pytest.mark.slow
def test_a_killed_launcher_leaves_no_rank_behind(data, tmp_path):
    process, ranks = started(data, tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    assert gone(ranks)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)])
def test_a_stopped_launcher_saves(data, tmp_path, number, to_all):
    process, ranks = started(data, tmp_path)
    for pid in (
        process.pid,
        *(ranks if to_all else ()),
    ):  # a terminal or a container's end reaches all, and the launcher tells its ranks again
        os.kill(pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err == ""
    saved = int(out.split("saved at step ")[1].split(";")[0])
    assert [record["step"] for record in events(tmp_path, "step")] == list(range(1, saved + 1))
    assert gone(ranks)
