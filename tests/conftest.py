"""Fixtures for all tests: synthetic images, folders and h5 files of them, and the command line."""

from __future__ import annotations

import functools
import os
import secrets
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
import runs
import torch
from fake_npu import simulated_npu
from PIL import Image

from rdn_fast import auto_level
from rdn_fast.rdb import autotune, measure, rounds, tuning
from rdn_fast.weights import shipped

# A cache folder for all tests: kernels are compiled, and impls timed, once. It is deleted at the end.
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit it
    _cache = tempfile.TemporaryDirectory(prefix="rdn_fast-tests-")
    os.environ["XDG_CACHE_HOME"] = _cache.name

    # The C files for another processor than this one, also in processes of their own.
    if march := os.environ.get("RDN_FAST_TEST_MARCH"):
        _compiler = Path(_cache.name) / "cc"
        _name = shlex.quote(os.environ.get("CC", "cc"))
        _compiler.write_text(f'#!/usr/bin/env bash\nexec {_name} "${{@/#-march=native/-march={march}}}"\n')
        _compiler.chmod(0o755)
        os.environ["CC"] = str(_compiler)

SEED_VARIABLE = "RDN_FAST_TEST_SEED"


class Prepared(NamedTuple):
    """Files made by `rdn-fast prepare` at x2. The session shares them: only read them."""

    images: Path  # 4 PNG of 64 x 56, 60 x 52, ... HR pixels
    train: Path  # 20 pairs; the smallest LR image is 13 x 11
    eval: Path  # 4 pairs of whole images


class Ended(NamedTuple):
    """How a command ended that ran in this process: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def user_error(self) -> str:
        """Check that it ended by a user's mistake, with exit code 2 and one line on stderr. Return the message."""
        assert self.code == 2, self
        assert self.err.startswith("rdn-fast: error: "), self
        assert self.err.endswith("\n"), self
        assert self.err.count("\n") == 1, self
        return self.err.removeprefix("rdn-fast: error: ").rstrip("\n")


def _write_images(folder: Path, pictures: int | Mapping[str, np.ndarray], size: tuple[int, int]) -> Path:
    folder.mkdir(parents=True)
    if isinstance(pictures, int):
        sizes = [(size[0] - 4 * i, size[1] - 4 * i) for i in range(pictures)]
        pictures = {f"picture_{i}.png": runs.photograph(*each, seed=i) for i, each in enumerate(sizes)}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / name)
    return folder


@pytest.fixture(scope="session")
def photograph() -> Callable[..., np.ndarray]:
    """Return runs.photograph."""
    return runs.photograph


@pytest.fixture
def image_folder(tmp_path) -> Callable[..., Path]:
    """Return image_folder(pictures=3, size=(48, 40), name="images"), which writes a new folder of picture_0.png, ...

    pictures: how many, each 4 pixels smaller than the one before it; or {file name: uint8 array}.
    """

    def make(
        pictures: int | Mapping[str, np.ndarray] = 3, size: tuple[int, int] = (48, 40), name: str = "images"
    ) -> Path:
        return _write_images(tmp_path / name, pictures, size)

    return make


@pytest.fixture(scope="session")
def make_h5() -> Callable[..., Path]:
    """Return make_h5(path, pairs, **options), which writes (lr, hr) arrays in the reference's layout by h5py alone.

    pairs: numbered in order, or named by a dict. options: of create_dataset (chunks=True, compression="gzip", ...).
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
    """Return a folder of images, and a training and an evaluation h5 of them at x2."""
    from rdn_fast.data.prepare import prepare

    folder = tmp_path_factory.mktemp("prepared")
    files = Prepared(_write_images(folder / "images", 4, (64, 56)), folder / "train.h5", folder / "eval.h5")
    prepare(str(files.images), str(files.train), 2)
    prepare(str(files.images), str(files.eval), 2, evaluation=True)
    return files


@pytest.fixture(scope="session")
def _three_models(tmp_path_factory) -> Path:
    from rdn_fast.config import ModelConfig
    from rdn_fast.model import RDN
    from rdn_fast.weights.convert import convert

    folder = tmp_path_factory.mktemp("three models")
    for scale in (2, 3, 4):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(scale)
            torch.save(RDN(ModelConfig(scale, 6, 4, 2, 2)).state_dict(), folder / "model.pth")
        said = [f"licence=licence of x{scale}", f"training_data=pictures for x{scale}"]
        convert(str(folder / "model.pth"), str(folder / f"small_x{scale}.safetensors"), metadata=said)
        table = f"| set | images | RDN PSNR-Y |\n| --- | --- | --- |\n| Set5 | 5 | **3{scale}.25** |\n"
        (folder / f"small_x{scale}.md").write_text(f"# small_x{scale}\n\n{table}")
    return folder


@pytest.fixture
def three_models(_three_models, monkeypatch) -> dict[int, Path]:
    """Ship small_x2, small_x3 and small_x4, tiny models with random weights. Return {scale: file}."""
    monkeypatch.setattr(shipped, "FOLDER", _three_models)
    return {scale: _three_models / f"small_x{scale}.safetensors" for scale in (2, 3, 4)}


@pytest.fixture(scope="session")
def npu_environment() -> dict[str, str]:
    """Return the environment of processes that may import the simulated torch_npu, with two devices."""
    if (reason := simulated_npu.why_not()) is not None:
        pytest.skip(reason)
    simulated_npu.library()
    return simulated_npu.environment(FAKE_NPU_DEVICES="2")


@pytest.fixture(autouse=True)
def fixed_level(monkeypatch) -> None:
    """Let `--opt-level auto` be runs.LEVEL in this process. Processes of their own get that by the flags runs.TINY.

    Tests of the choice itself define a fixture of this name that does nothing.
    """
    monkeypatch.setattr(auto_level, "auto_level", lambda *_: runs.LEVEL)


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch) -> None:
    """Time no impl in more than the least number of rounds in this process: at tests' sizes none is clearly faster."""
    monkeypatch.setattr(rounds, "MORE", 0)
    monkeypatch.setattr(measure, "BUDGET", 0.0)
    monkeypatch.setattr(measure, "PICTURE_BUDGET", 0.0)


@pytest.fixture
def no_choices(monkeypatch, tmp_path) -> Iterable[Path]:
    """Return the empty folder of choices by timing. This process has made none."""
    monkeypatch.setattr(tuning, "cache_folder", lambda: tmp_path)
    autotune.winners.clear()
    yield tmp_path
    autotune.winners.clear()


@pytest.fixture
def cli(capsys) -> Callable[..., Ended]:
    """Return cli(*arguments), which runs `rdn-fast ...` in this process, far faster than run_cli."""

    def run(*arguments) -> Ended:
        from rdn_fast.cli import main

        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def run_cli(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Return runs.cli with the test's own folder as the working folder."""
    return functools.partial(runs.cli, cwd=tmp_path)


@pytest.fixture
def seed() -> int:
    """Return a new seed in every run, for tests that must hold for any input. A failure prints how to repeat it."""
    value = int(os.environ.get(SEED_VARIABLE) or secrets.randbits(31))
    print(f"seed {value}; to repeat: {SEED_VARIABLE}={value}")
    return value
