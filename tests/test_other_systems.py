"""The commands where Linux's or POSIX's own functions are missing, by simulation: no Windows, no macOS was tried."""

import os

import pytest
import torch
from PIL import Image
from runs import ROOT, TINY, assert_user_error, make_data, photograph
from runs import cli as process

HERE = ROOT / "tests" / "other_system"
WARNING = "only soft file lock is available"  # filelock's, which on a real Windows has locks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    make_data(folder / "data", images=3)
    Image.fromarray(photograph(24, 20)).save(folder / "photo.png")
    return folder


def run(system: str, folder, *arguments) -> str:
    """Run the command on the system. Return its stdout. It must not fail, nor say anything on stderr."""
    variables = {"PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}", "RDN_FAST_TEST_SYSTEM": system}
    ended = process(*arguments, cwd=folder, env=variables | {"PYTHONWARNINGS": f"ignore:{WARNING}"})
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return ended.stdout


@pytest.mark.parametrize("system", ["windows", "macos"])
def test_pictures_evaluation_and_weights_need_no_linux(folder, tmp_path, system):
    run(system, folder, "upscale", "-i", "photo.png", "-o", tmp_path)
    (made,) = tmp_path.iterdir()
    with Image.open(made) as picture:
        assert picture.size == (40, 48)
    assert "│ mean " in run(system, folder, "eval", "--eval-file", "data/Set5_x2.h5")
    last = tmp_path / "last.pth"
    run(system, folder, "convert", ROOT / "rdn_fast" / "weights" / "small_x2.safetensors", last)
    assert torch.load(last, weights_only=True)
    assert "can run on cpu" in run(system, folder, "doctor", "--device", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mmap", "resident", "h5py"])
def test_training_needs_no_linux(folder, tmp_path, mode):
    steps = ("--max-steps", 2, "--data-mode", mode)
    flags = ("--data-path", "data", "--outputs-dir", tmp_path, *TINY, "--rdb", "naive", *steps)
    run("macos", folder, "train", *flags)
    here = process("train", *flags[:3], tmp_path / "here", *flags[4:], cwd=folder)
    assert here.returncode == 0, here
    assert (tmp_path / "last.pth").read_bytes() == (tmp_path / "here" / "last.pth").read_bytes()


def test_train_says_where_it_runs(folder, tmp_path):
    variables = {"PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}", "RDN_FAST_TEST_SYSTEM": "windows"}
    flags = ("--data-path", "data", "--outputs-dir", tmp_path, *TINY, "--rdb", "naive", "--max-steps", 2)
    ended = process("train", *flags, cwd=folder, env=variables | {"PYTHONWARNINGS": f"ignore:{WARNING}"})
    assert_user_error(ended, str(tmp_path), "lacks fcntl's locks; train on Linux or macOS")
