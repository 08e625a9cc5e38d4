"""Outputs folders as training writes them, made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from rdn_fast.evaluation import sheet
from rdn_fast.evaluation.crops import Windows
from rdn_fast.evaluation.sheet import Measured, Sheet
from rdn_fast.training.snapshot import new_sheet_path

SETTINGS = {"scale": 2, "num_features": 32, "growth_rate": 16, "num_blocks": 4, "num_layers": 3, "recipe": {"lr": 1e-3}}
START = {
    "event": "start",
    "step": 0,
    "device": "cpu",
    "torch": "2.13.0",
    "steps": 300,
    **SETTINGS,
    "rdb": {"training": "sliced"},
}


def records(steps: int, per_epoch: int) -> Iterable[dict]:
    yield START
    for step in range(1, steps + 1):
        yield {"event": "step", "step": step, "epoch": (step - 1) // per_epoch, "lr": 1e-3, "loss": 1 / step}
        if step % per_epoch == 0:
            psnr = 34 - 20 / step
            speeds = {"fps_end_to_end": 90.0, "fps_seed_window": 95.5, "seconds": 0.5 * step}
            yield {"event": "epoch", "step": step, "loss": 1 / step, **speeds, "psnr_y": psnr, "psnr_y_compat": psnr}


@pytest.fixture
def make_run(tmp_path, photograph) -> Callable[..., Path]:
    """Return make_run(name="run", steps=300, sheets=(10, 300), picture="bird", more=()), which writes a folder.

    more: lines after those of the run, as bytes or records.
    """

    def make(name="run", steps=300, sheets=(10, 300), picture="bird", more=(), per_epoch=10) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        lines = [json.dumps(each) for each in records(steps, per_epoch)]
        lines += [each if isinstance(each, bytes) else json.dumps(each) for each in more]
        encoded = [each if isinstance(each, bytes) else each.encode() + b"\n" for each in lines]
        (folder / "metrics.jsonl").write_bytes(b"".join(encoded))
        for step in sheets:
            hr, bicubic = photograph(150, 130), photograph(150, 130, seed=1)
            rdn = (hr + (bicubic.astype(float) - hr) / math.sqrt(step)).astype("uint8")
            windows = Windows(picture, hr, bicubic, rdn, 2)
            worst, best = windows.worst_and_best()
            crops = {"tracked": [windows.hardest()], "best": [best], "worst": [worst]}
            measured = [Measured(picture, *windows.psnrs), Measured("other", 30.0, 33.5)]
            path = new_sheet_path(folder, step)
            path.write_bytes(sheet.encode(Sheet(step, 2, measured, crops)))
        return folder

    return make
