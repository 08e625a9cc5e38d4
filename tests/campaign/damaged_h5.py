"""Damaged h5 files of all layouts, given to all commands that read one: read, or refused in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from rdn_fast.data.h5 import HR, LR, PairedH5
from rdn_fast.data.h5_writer import write_pairs
from rdn_fast.data.pairs import Pair, degrade
from rdn_fast.errors import Failure, UserError
from tests.campaign.damage import damaged
from tests.campaign.trial import READ, REFUSED, Kind, command_line, require, require_one_line
from tests.runs import TINY, photograph

SCALE = 2


def _layouts(folder: Path) -> dict[str, bytes]:
    """Return files as we and others write them: {layout: content}."""
    train = [degrade(f"{i}", photograph(24 + 2 * (i % 3), 20, seed=i), SCALE) for i in range(10)]
    whole = [degrade(f"{i}", photograph(28 + 2 * i, 30, seed=20 + i), SCALE) for i in range(3)]
    path, made = folder / "made.h5", {}

    def keep(layout: str) -> None:
        made[layout] = path.read_bytes()
        path.unlink()

    for layout, pairs in (("train", train), ("eval", whole)):
        write_pairs(path, pairs, {"made_from": "a campaign"})
        keep(f"ours, {layout}")
        _write(path, pairs)
        keep(f"the reference's, {layout}")
    for layout, options in (
        ("chunked", {"chunks": (5, 4, 3)}),
        ("gzip", {"compression": "gzip", "shuffle": True}),
        ("lzf, checksums", {"compression": "lzf", "fletcher32": True}),
        ("growing", {"chunks": (8, 8, 3), "maxshape": (None, None, 3)}),
    ):
        _write(path, train, **options)
        keep(layout)
    for layout, dtype, top in (("floats", np.float32, 255), ("wide", np.int64, 1), ("big-endian", ">u2", 1)):
        _write(path, [Pair(pair.name, *((image / top).astype(dtype) for image in pair[1:])) for pair in train])
        keep(layout)
    _write(path, train, version="latest")
    keep("newest format")
    return made


def _write(path: Path, pairs: list[Pair], version: str = "earliest", **options) -> None:
    with h5py.File(path, "w", libver=version) as file:
        for i, pair in enumerate(pairs):
            for group, image in (("lr", pair.lr), ("hr", pair.hr)):
                file.create_dataset(f"{group}/{i}", data=image, **options)


def _open(path: Path, folder: Path, rng: np.random.Generator) -> str:
    """Read every image in both ways."""
    try:
        pairs = PairedH5(path, SCALE)
        if rng.random() < 0.3:
            pairs.read_by_name()
        for pair in pairs:
            for image in (pair.lr, pair.hr):
                require(image.dtype == np.uint8 and image.shape[2:] == (3,), f"{image.dtype} {image.shape}")
            int(pair.lr.sum()) + int(pair.hr.sum())  # touches every page
        part = np.empty((2, 2, 3), np.uint8)
        for i in range(len(pairs)):
            for group in (LR, HR):
                if min(pairs.image(group, i).shape[:2]) >= 2:
                    pairs.read_part(group, i, 0, 0, part)
    except (UserError, Failure) as error:
        _require_names(str(error), path)
        return REFUSED
    return READ


def _require_names(line: str, path: Path) -> None:
    require(str(path) in line and "\n" not in line, f"not one line that names the file: {line}")


def _train(path: Path, folder: Path, rng: np.random.Generator) -> str:
    mode = ("auto", "mmap", "h5py", "resident")[rng.integers(4)]
    recipe = ("--opt-level", "O0", "--rdb", "naive", "--batch-size", 4, "--max-steps", 2, "--data-mode", mode)
    code, _, err = command_line("train", "--train-file", path, "--outputs-dir", folder / "out", *TINY, *recipe)
    if code:
        require_one_line(code, err, path)
        return REFUSED
    lines = (folder / "out" / "metrics.jsonl").read_text().splitlines()
    losses = [record["loss"] for record in map(json.loads, lines) if record["event"] == "step"]
    require(len(losses) == 2 and all(map(math.isfinite, losses)), f"losses {losses}")
    return READ


def _eval(path: Path, folder: Path, rng: np.random.Generator) -> str:
    code, _, err = command_line(
        "eval", "--device", "cpu", "--eval-file", path, "-w", folder.parent / "made" / "tiny.pth"
    )
    if code:
        require_one_line(code, err, path)
        return REFUSED
    return READ


def _repack(path: Path, folder: Path, rng: np.random.Generator) -> str:
    new = folder / "new.h5"
    code, _, err = command_line("prepare", "--repack", path, new)
    if code:
        require_one_line(code, err, path)
        require(not new.exists(), "a file was written in spite of the error")
        return REFUSED
    require([pair.lr.dtype for pair in PairedH5(new, _scale(new))], "an empty file was written")
    return READ


def _scale(path: Path) -> int:
    with h5py.File(path) as file:
        key = next(iter(file["lr"]))
        return file["hr"][key].shape[0] // file["lr"][key].shape[0]


READERS: tuple[Callable[[Path, Path, np.random.Generator], str], ...] = (_open, _open, _train, _eval, _repack)


def _prepare(folder: Path) -> list[bytes]:
    import torch

    from tests.weights.other_projects import Reference

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save(Reference(SCALE).state_dict(), folder / "tiny.pth")
    return list(_layouts(folder).values())


def _run(contents: list[bytes], seed: int, folder: Path) -> str:
    rng = np.random.default_rng([5, seed])
    path = folder / "damaged.h5"
    path.write_bytes(damaged(rng, contents[rng.integers(len(contents))]))
    return READERS[rng.integers(len(READERS))](path, folder, rng)


KINDS = (
    Kind(
        "h5",
        "A damaged h5 file (bits, spans, sizes, ends; our layout and others') is read or refused in one line",
        10_000,
        _run,
        _prepare,
        batch=500,
        cpu_seconds=20,
        bounded=True,
    ),
)
