"""Damaged weights and checkpoints of all projects: read as finite weights of an RDN, or refused in one line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from rdn_fast.errors import UserError
from rdn_fast.training import checkpoint
from rdn_fast.weights.convert import load_model, read_weights
from tests.campaign.damage import damaged
from tests.campaign.trial import READ, REFUSED, Kind, command_line, require, require_one_line
from tests.runs import TINY, make_data
from tests.weights import other_projects as others


def _saved(value, **options) -> bytes:
    torch.save(value, file := io.BytesIO(), **options)
    return file.getvalue()


def _prepare(folder: Path) -> tuple[list[bytes], bytes]:
    """Return the contents of weights files, and of a checkpoint of a run."""
    torch.manual_seed(0)
    state = others.Reference(2).state_dict()
    npu = folder / "npu.pth"
    folder.mkdir(parents=True, exist_ok=True)
    others.save_from_npu(npu, state)
    weights = [
        _saved(state),
        _saved(state, _use_new_zipfile_serialization=False),
        safetensors.torch.save(state, {"rdn_fast_format": "1", "value_range": "0..1"}),
        _saved({key: value.half() for key, value in state.items()}),
        _saved(others.ascend(state)),
        npu.read_bytes(),
        _saved(others.Edsr(4).state_dict()),
        _saved(others.lornatang(others.Lornatang(3), others.Lornatang(3))),
        _saved(others.lightning(state, "model.")),
        _saved(others.mmagic(state, state)),
    ]
    recipe = ("--opt-level", "O0", "--rdb", "naive", "--batch-size", 4, "--max-steps", 2, "--ema", "0.9")
    flags = ("--data-path", make_data(folder / "data", images=5), "--outputs-dir", folder / "run", *TINY, *recipe)
    code, _, err = command_line("train", *flags)
    require(code == 0, err)
    (path,) = folder.glob("run/checkpoints/step_*.pt")
    return weights, path.read_bytes()


def _require_names(line: str, path: Path) -> None:
    require(line.startswith(str(path)) and "\n" not in line, f"not one line that names the file: {line}")


def _read(path: Path, folder: Path) -> str:
    try:
        state = read_weights(path).state
        model = load_model(path)
    except UserError as error:
        _require_names(str(error), path)
        return REFUSED
    for key, value in state.items():
        require(value.dtype == torch.float32 and value.isfinite().all(), f"{key} is not finite float32")
    scale = model.config.scale
    with torch.inference_mode():
        require(
            model(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8 * scale, 8 * scale), "the model's output has no such size"
        )
    return READ


def _convert(path: Path, folder: Path) -> str:
    target = folder / "new.safetensors"
    code, _, err = command_line("convert", path, target)
    if code:
        require_one_line(code, err, path)
        require(not target.exists(), "a file was written in spite of the error")
        return REFUSED
    read_weights(target)
    return READ


def _resume(path: Path, whole: bytes) -> str:
    """A checkpoint is exact or refused: its checksums are read."""
    try:
        state = checkpoint.load_checkpoint(str(path), path.parent, print)
    except UserError as error:
        _require_names(str(error), path)
        return REFUSED
    expected = torch.load(io.BytesIO(whole), weights_only=True)
    require(_saved(state) == _saved(expected), "a damaged checkpoint was read as another one")
    return READ


def _run(made: tuple[list[bytes], bytes], seed: int, folder: Path) -> str:
    weights, state = made
    rng = np.random.default_rng([6, seed])
    which, reader = rng.integers(len(weights) + 2), rng.random()
    path = folder / ("damaged.pth" if rng.random() < 0.7 else "damaged.safetensors")
    if which >= len(weights):
        path.write_bytes(damaged(rng, state))
        return _resume(path, state)
    path.write_bytes(damaged(rng, weights[which]))
    return _read(path, folder) if reader < 0.7 else _convert(path, folder)


KINDS = (
    Kind(
        "weights",
        "A damaged file of weights or checkpoint (as we and other projects write them) is read as finite weights, "
        "a checkpoint exactly, or refused in one line",
        5_000,
        _run,
        _prepare,
        batch=500,
        cpu_seconds=20,
        bounded=True,
    ),
)
