"""Fixtures of all tests: synthetic pictures, folders and h5 files of them, and the command line in and out of this process."""

from __future__ import annotations

import functools
import os
import secrets
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
import runs
from fake_npu import simulated_npu
from PIL import Image

# Kernels are compiled, and implementations timed, once for all tests, and nothing of that is left behind.
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers have their starter's
    _cache = tempfile.TemporaryDirectory(prefix="rdn_fast-tests-")
    os.environ["XDG_CACHE_HOME"] = _cache.name

SEED_VARIABLE = "RDN_FAST_TEST_SEED"


class Prepared(NamedTuple):
    """Files made by `rdn-fast prepare` at x2; shared by the session, so read only."""

    images: Path  # 4 PNG of 64 x 56, 60 x 52, ... HR pixels
    train: Path  # 20 pairs; the smallest LR image is 13 x 11
    eval: Path  # 4 pairs of whole images


class Ended(NamedTuple):
    """How a command ended that ran in this process."""

    code: int
    out: str
    err: str

    def user_error(self) -> str:
        """The message of a command that must have ended by the user's mistake: exit code 2 and one line on stderr."""
        assert self.code == 2, self
        assert self.err.startswith("rdn-fast: error: "), self
        assert self.err.endswith("\n"), self
        assert self.err.count("\n") == 1, self
        return self.err.removeprefix("rdn-fast: error: ").rstrip("\n")


def _write_images(folder: Path, pictures: int | Mapping[str, np.ndarray], size: tuple[int, int]) -> Path:
    folder.mkdir(parents=True)
    if isinstance(pictures, int):
        pictures = {
            f"picture_{i}.png": runs.photograph(size[0] - 4 * i, size[1] - 4 * i, seed=i) for i in range(pictures)
        }
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / name)
    return folder


@pytest.fixture(scope="session")
def photograph() -> Callable[..., np.ndarray]:
    """photograph(height, width, seed=0): a synthetic picture, uint8 [height, width, 3], with light, edges and texture."""
    return runs.photograph


@pytest.fixture
def image_folder(tmp_path) -> Callable[..., Path]:
    """image_folder(pictures=3, size=(48, 40), name="images"): a new folder of picture_0.png, ...

    `pictures` is how many, each 4 pixels smaller than the one before it, or {file name: uint8 array}.
    """

    def make(
        pictures: int | Mapping[str, np.ndarray] = 3, size: tuple[int, int] = (48, 40), name: str = "images"
    ) -> Path:
        return _write_images(tmp_path / name, pictures, size)

    return make


@pytest.fixture(scope="session")
def make_h5() -> Callable[..., Path]:
    """make_h5(path, pairs, **options): write (lr, hr) arrays in the reference's layout with h5py alone.

    `pairs` are numbered in order, or named by a dict; options go to create_dataset (chunks=True, compression="gzip", ...).
    """

    def make(path: Path, pairs: Iterable | Mapping, **options) -> Path:
        items = pairs.items() if isinstance(pairs, Mapping) else ((str(i), pair) for i, pair in enumerate(pairs))
        with h5py.File(path, "w") as file:
            groups = file.create_group("lr"), file.create_group("hr")
            for key, pair in items:
                for group, image in zip(groups, pair, strict=True):
                    group.create_dataset(key, data=image, **options)
        return path

    return make


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Prepared:
    """A folder of pictures, and a training and an evaluation h5 of them at x2."""
    from rdn_fast.data.prepare import prepare

    folder = tmp_path_factory.mktemp("prepared")
    files = Prepared(_write_images(folder / "images", 4, (64, 56)), folder / "train.h5", folder / "eval.h5")
    prepare(str(files.images), str(files.train), 2)
    prepare(str(files.images), str(files.eval), 2, evaluation=True)
    return files


@pytest.fixture(scope="session")
def npu_environment() -> dict[str, str]:
    """Of processes that may import the stand-in torch_npu; they have two simulated npus."""
    if (reason := simulated_npu.why_not()) is not None:
        pytest.skip(reason)
    simulated_npu.library()
    return simulated_npu.environment(FAKE_NPU_DEVICES="2")


@pytest.fixture
def cli(capsys) -> Callable[..., Ended]:
    """cli(*arguments): `rdn-fast ...` in this process; far faster than run_cli."""

    def run(*arguments) -> Ended:
        from rdn_fast.cli import main

        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def run_cli(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """runs.cli in the test's own working folder."""
    return functools.partial(runs.cli, cwd=tmp_path)


@pytest.fixture
def seed() -> int:
    """A fresh seed in every run, for tests that must hold for any input; the report of a failure says how to repeat it."""
    value = int(os.environ.get(SEED_VARIABLE) or secrets.randbits(31))
    print(f"seed {value}; to repeat: {SEED_VARIABLE}={value}")
    return value
