"""The disk is full at any byte, or syncing or renaming fails: the earlier files survive, one line names the path.

A disk is a tmpfs with so many pages left; it takes the right to mount one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from PIL import Image

from rdn_fast.training.checkpoint import list_checkpoints, load_checkpoint
from tests.campaign.trial import Kind, command_line, require, require_one_line
from tests.runs import TINY, make_data, photograph
from tests.weights.other_projects import Reference

WHOLE, ENDED = "nothing was missing", "ended in one line, earlier files whole"
_PAGE = 4096
_RECIPE = ("--batch-size", 4, "--opt-level", "O0", "--rdb", "naive", "--eval-every", 2, "--checkpoint-every", "1e-9")


class Work(NamedTuple):
    """A command that is run twice into a folder: the first time all goes well."""

    first: tuple
    second: tuple
    results: tuple[str, ...]  # files that the second one replaces


def _works(inputs: Path, disk: Path) -> dict[str, Work]:
    """Return the commands. {disk} is where they write."""
    train = ("train", "--data-path", inputs / "data", "--outputs-dir", disk / "out", *TINY, *_RECIPE)
    upscale = ("upscale", "--overwrite", "--device", "cpu", "-w", inputs / "0.pth", "-o", disk / "up", "-i")
    return {
        "train": Work((*train, "--max-steps", 9), (*train, "--max-steps", 24, "--resume", "auto"), ("out/last.pth",)),
        "prepare": Work(
            *(("prepare", "--output-path", disk / "new.h5", "--images-dir", inputs / f"images{i}") for i in range(2)),
            ("new.h5",),
        ),
        "convert": Work(*(("convert", inputs / f"{i}.pth", disk / "new.pth") for i in range(2)), ("new.pth",)),
        "upscale": Work(*((*upscale, inputs / f"images{i}") for i in range(2)), ("up/a_out.png", "up/b_out.png")),
    }


class Made(NamedTuple):
    inputs: Path
    pages: dict[str, int]  # that each second command takes
    expected: dict[str, list[bytes]]  # the results of each


def _prepare(folder: Path) -> Made:
    shutil.rmtree(folder, ignore_errors=True)
    make_data(folder / "data", images=9)
    for i in range(2):
        torch.manual_seed(i)
        torch.save(Reference(2).state_dict(), folder / f"{i}.pth")
        images = folder / f"images{i}"
        images.mkdir()
        for seed, name in enumerate(("a.png", "b.png")):
            Image.fromarray(photograph(64, 48, seed=10 * i + seed)).save(images / name)
    pages, expected = {}, {}
    for name in _works(folder, folder):
        with _disk(folder / "disk") as disk:
            work = _works(folder, disk)[name]
            _run_whole(work.first)
            before = _left(disk)
            _run_whole(work.second)
            pages[name] = before - _left(disk)
            expected[name] = [(disk / file).read_bytes() for file in work.results]
    return Made(folder, pages, expected)


@contextmanager
def _disk(folder: Path) -> Iterator[Path]:
    """Mount a disk of 8 MB."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _left(disk: Path) -> int:
    return os.statvfs(disk).f_bavail


def _run_whole(words: tuple) -> None:
    code, _, err = command_line(*words)
    require((code, err) == (0, ""), f"{code}: {err}")


@contextmanager
def _fails(call: str, number: int) -> Iterator[None]:
    """Let the n-th call of os.fsync or os.replace fail as on a full disk."""
    real, calls = getattr(os, call), iter(range(1, 1_000_000))

    def fail(*arguments):
        if next(calls) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    with mock.patch.object(os, call, fail):
        yield


@contextmanager
def _full(disk: Path, pages: int) -> Iterator[None]:
    """Leave so many pages of the disk."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        file.write(bytes(_PAGE * max(0, _left(disk) - pages)))
    try:
        yield
    finally:
        ballast.unlink()


def _fault(rng: np.random.Generator, disk: Path, pages: int) -> contextlib.AbstractContextManager:
    if rng.random() < 0.8:  # a file is written aside: twice its pages are taken for a while
        return _full(disk, int(rng.integers(2 * pages + 12)))
    return _fails(("fsync", "replace")[rng.integers(2)], int(2 ** rng.uniform(0, 6)))


def _run(made: Made, seed: int, folder: Path) -> str:
    rng = np.random.default_rng([10, seed])
    with _disk(folder / "disk") as disk:
        works = _works(made.inputs, disk)
        name = ("train", "train", "prepare", "convert", "upscale")[rng.integers(5)]
        work, expected = works[name], made.expected[name]
        _run_whole(work.first)
        earlier = [(disk / file).read_bytes() for file in work.results]
        with _fault(rng, disk, made.pages[name]):
            code, _, err = command_line(*work.second)
        if code:
            require_one_line(code, err, disk)
        for file, old, new in zip(work.results, earlier, expected, strict=True):
            found = (disk / file).read_bytes()
            # Of a run, last.pth may be of any checkpoint; below it must be whole.
            require(found == new or (code and (found == old or name == "train")), f"{file} is neither old nor new")
        require(not [*disk.rglob("*.tmp")], "temporary files are left")
        if name == "train":
            _require_whole(disk / "out")
        _run_whole(work.second)
        require([(disk / file).read_bytes() for file in work.results] == expected, "the results are not those of old")
    return ENDED if code else WHOLE


def _require_whole(outputs: Path) -> None:
    """All that a run has left behind can be read."""
    for path in outputs.glob("*.pth"):
        torch.load(path, weights_only=True)
    for path in list_checkpoints(outputs / "checkpoints"):
        load_checkpoint(str(path), outputs, print)


def _needs() -> str | None:
    """Return why no disk can be mounted here."""
    if os.geteuid() or shutil.which("mount") is None:
        return "needs root, to mount a small disk"
    return None


KINDS = (
    Kind(
        "full",
        "A disk that is full at any page, or a sync or rename that fails, under train, prepare, convert and upscale: "
        "earlier files stay whole, one line names the path, and the same command goes on when there is space",
        400,
        _run,
        _prepare,
        batch=100,
        cpu_seconds=60,
        needs=_needs,
    ),
)
