"""Validations as they are met: long ones, large pictures, signals meanwhile, pictures that are met exactly."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from runs import ROOT, TINY, cli, command, events, make_data, photograph, ranks_of, weights
from safetensors.torch import save_file
from waiting import PATIENCE

from rdn_fast.config import ModelConfig
from rdn_fast.data.h5_writer import write_pairs
from rdn_fast.data.pairs import degrade
from rdn_fast.model import RDN

BLOCKS, BLOCK_SECONDS = 8, 3
# Each block of a validation takes so long, and ranks give up in its exchanges within less time than the picture takes.
SLOW = f"""
import importlib.abc, importlib.machinery, sys, time

class Slowed(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "rdn_fast.training.run":
            return None
        sys.meta_path.remove(self)
        import torch
        from datetime import timedelta
        from rdn_fast.rdb import blocks
        from rdn_fast.distributed import in_touch, process_group
        forward, begin = blocks.RDB.forward, in_touch.InTouch.__init__
        def slow(self, *arguments):
            if not torch.is_grad_enabled():
                time.sleep({BLOCK_SECONDS})
            return forward(self, *arguments)
        def shorten(*arguments):
            process_group.TIMEOUT, process_group._GRACE = 20, 2
            if torch.distributed.is_initialized():
                torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=20))
            begin(*arguments)
        in_touch.InTouch.__init__ = shorten
        blocks.RDB.forward = slow
        return importlib.machinery.PathFinder.find_spec(name, path, target)

sys.meta_path.insert(0, Slowed())
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = make_data(tmp_path_factory.mktemp("data"))
    write_pairs(folder / "Set5_x2.h5", [degrade("only", photograph(40, 36), 2)])
    return folder


@pytest.fixture
def slow(data, tmp_path):
    """Start a training whose validation takes BLOCK_SECONDS a block, and return the process."""
    started = []
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW)
    path = os.pathsep.join([str(tmp_path / "slow"), str(ROOT)])

    def start(*flags):
        words = ("train", "--data-path", data, *TINY, "--num-blocks", BLOCKS, "--rdb", "naive", "--batch-size", 8)
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        started.append(
            subprocess.Popen(
                command(*words, "--outputs-dir", tmp_path / "out", *flags),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
        return started[-1]

    yield start
    for process in started:
        for pid in ranks_of(process):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.communicate()


def in_validation(process) -> None:
    """Wait until the process has printed the end of an epoch's steps."""
    for line in process.stdout:
        if re.match(r"epoch 0: ", line):
            time.sleep(BLOCK_SECONDS / 2)
            return
    pytest.fail(process.stderr.read())


@pytest.mark.slow
def test_ranks_wait_for_a_validation_of_any_length(slow, tmp_path):
    process = slow("--nproc", 2, "--epochs", 1)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert err == ""
    (epoch,) = events(tmp_path / "out", "epoch")
    assert epoch["psnr_y"] > 5
    assert epoch["seconds"] > BLOCKS * BLOCK_SECONDS
    assert f"PSNR-Y {epoch['psnr_y']:.2f} dB canonical" in out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heard_during_a_validation_and_the_resume_is_exact(slow, data, tmp_path, number):
    process = slow("--epochs", 2)
    in_validation(process)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert err == ""
    assert "PSNR-Y" not in out  # the validation was not finished
    assert "saved at step 3; go on with --resume auto" in out
    assert not events(tmp_path / "out", "epoch")
    flags = ("train", "--data-path", data, *TINY, "--num-blocks", BLOCKS, "--rdb", "naive", "--batch-size", 8)
    resumed = cli(*flags, "--epochs", 2, "--outputs-dir", tmp_path / "out", "--resume", "auto")
    whole = cli(*flags, "--epochs", 2, "--outputs-dir", tmp_path / "whole")
    assert (resumed.returncode, whole.returncode) == (0, 0)
    for name in ("last.pth", "best.pth"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    ours, theirs = (events(tmp_path / name, "epoch") for name in ("out", "whole"))
    for key in ("epoch", "step", "loss", "psnr_y", "psnr_y_compat"):
        assert [record[key] for record in ours] == [record[key] for record in theirs]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_the_validation_of_all(slow, rank):
    process = slow("--nproc", 2, "--epochs", 2)
    in_validation(process)
    os.kill(ranks_of(process)[rank], signal.SIGTERM)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM
    assert "PSNR-Y" not in out
    assert out.count("saved at step ") == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_in_a_validation_is_named(slow, rank):
    process = slow("--nproc", 2, "--epochs", 2)
    in_validation(process)
    os.kill(ranks_of(process)[rank], signal.SIGSTOP)
    while process.poll() is None:
        line = process.stderr.readline()
        if line:
            assert f"no answer for 20 s from rank {rank}" in line
            return
    pytest.fail("it ended without a word")


LIMITED = """
import resource, sys
import h5py, torch
from rdn_fast.cli import main
import rdn_fast.training.run
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]) * 10**6,) * 2)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_a_picture_larger_than_the_memory_is_validated_in_tiles_as_eval_does(data, tmp_path):
    (tmp_path / "set").mkdir()
    picture = np.tile(photograph(500, 750), (4, 4, 1))  # 6 megapixels
    Image.fromarray(picture).save(tmp_path / "set" / "large.bmp")
    words = ("train", "--train-file", data / "DIV2K_x2.h5", "--eval-file", tmp_path / "set", *TINY, "--rdb", "naive")
    words += ("--num-features", 24, "--outputs-dir", tmp_path / "out", "--max-steps", 1)
    limited = subprocess.run(
        [sys.executable, "-c", LIMITED, "1100", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert limited.returncode == 0, limited
    assert "out of memory: from now on tiles of" in limited.stdout
    file = tmp_path / "e.json"
    assert (
        cli("eval", "-w", tmp_path / "out" / "last.pth", "--eval-file", tmp_path / "set", "--json", file).returncode
        == 0
    )
    mean, (epoch,) = json.loads(file.read_text())["sets"][0]["mean"], events(tmp_path / "out", "epoch")
    for key in ("psnr_y", "psnr_y_compat"):
        assert epoch[key] == pytest.approx(mean[key], abs=1e-3)


@pytest.mark.slow
def test_a_black_picture_poisons_neither_mean_nor_best(data, tmp_path):
    """The model answers black with black exactly, so its PSNR is infinite."""
    (tmp_path / "set").mkdir()
    for name, picture in (("black", np.zeros((40, 40, 3), np.uint8)), ("other", photograph(48, 44))):
        Image.fromarray(picture).save(tmp_path / "set" / f"{name}.png")
    torch.manual_seed(0)
    model = RDN(ModelConfig(2, 6, 4, 2, 2))
    with torch.no_grad():
        model.output.bias.fill_(-0.2)
    save_file(model.state_dict(), tmp_path / "start.safetensors")
    words = ("train", "--train-file", data / "DIV2K_x2.h5", "--eval-file", tmp_path / "set", *TINY, "--rdb", "naive")
    words += ("--weights-file", tmp_path / "start.safetensors", "--lr", "1e-4", "--epochs", 3)
    out = tmp_path / "out"
    ended = cli(*words, "--outputs-dir", out)
    assert ended.returncode == 0, ended
    assert ended.stdout.count("1 of 2 images left out of these means") == 3
    epochs = events(out, "epoch")
    psnrs = [record["psnr_y_compat"] for record in epochs]
    assert all(map(math.isfinite, psnrs))
    assert psnrs[0] < psnrs[1] < psnrs[2]
    assert "best epoch: 2, " in ended.stdout
    best, last = (weights(out, name) for name in ("best.pth", "last.pth"))
    assert all(torch.equal(best[key], value) for key, value in last.items())
    file = tmp_path / "e.json"
    told = cli("eval", "-w", out / "best.pth", "--eval-file", tmp_path / "set", "--json", file)
    (result,) = json.loads(file.read_text(), parse_constant=lambda name: 1 / 0)["sets"]
    assert result["images"][0]["psnr_y"] is None
    assert result["mean"]["psnr_y_compat"] == pytest.approx(psnrs[2], abs=1e-3)
    note = "set: infinite PSNR, of a result that equals HR, is left out of the means of PSNR: black (1 of 2)"
    assert note in told.stdout.splitlines()
    assert result["notes"] == [note]
