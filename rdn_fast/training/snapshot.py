"""Snapshots: a few small crops that are kept of some validations, so that a report can show how they improve.

They cost little: a validation has one when there have been twice as many steps as at the last one, or when the run is
over, and at most LOOKED_AT pictures are looked at.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from rdn_fast.data.degradation import Degradation
from rdn_fast.data.pairs import Pair
from rdn_fast.distributed.process_group import Ranks
from rdn_fast.evaluation import metrics
from rdn_fast.evaluation.crops import Crop, Windows, select_best_and_worst
from rdn_fast.evaluation.sheet import Measured, Sheet

LOOKED_AT = 16  # pictures of the validation set
TRACKED = 4  # of these, of which the same window is kept every time
KEEP = 20  # sheets in a run's folder, of at most 0.7 MB each


class Snapshot:
    """What one validation looks like. Every rank looks at the pictures that it measures."""

    def __init__(self, pictures: int, degradation: Degradation, scale: int):
        """pictures: in the validation set. degradation: whose bicubic stands beside RDN."""
        self._pictures, self._degradation, self._scale = pictures, degradation, scale
        self._looked_at = spread(range(pictures), LOOKED_AT)
        self._tracked = spread(self._looked_at, TRACKED)
        self._found: dict[int, tuple[Measured, Crop | None, tuple[Crop, Crop]]] = {}

    def look(self, i: int, pair: Pair, prediction: np.ndarray) -> None:
        """Take what picture i shows. prediction: float [H, W, 3] in 0..255, not yet rounded."""
        if i not in self._looked_at:
            return
        bicubic = self._degradation.resize(pair.lr, *pair.hr.shape[:2])
        windows = Windows(pair.name, pair.hr, bicubic, metrics.to_uint8(prediction), self._scale)
        tracked = windows.hardest() if i in self._tracked else None
        self._found[i] = Measured(pair.name, *windows.psnrs), tracked, windows.worst_and_best()

    def sheet(self, ranks: Ranks, step: int) -> Sheet | None:
        """Return what all ranks saw; None where no output was finite. A collective."""
        found = {i: seen for of_rank in ranks.gather(self._found) for i, seen in of_rank.items()}
        if not found:
            return None
        measured, tracked, extremes = zip(*(found[i] for i in sorted(found)), strict=True)
        best, worst = select_best_and_worst(extremes)
        crops = {"tracked": [crop for crop in tracked if crop is not None], "best": best, "worst": worst}
        return Sheet(step, self._pictures, list(measured), crops)


def spread(indices: range | list[int], most: int) -> list[int]:
    """Return at most so many of the indices, evenly spread."""
    count = min(most, len(indices))
    return [indices[i * len(indices) // count] for i in range(count)]


def sheets_folder(outputs: Path) -> Path:
    return outputs / "validation_crops"


def new_sheet_path(outputs: Path, step: int) -> Path:
    """Return where the sheet of a step goes, in a folder with room for it."""
    sheets_folder(outputs).mkdir(exist_ok=True)
    for old in list_sheets(outputs)[KEEP - 1 :]:
        old.unlink(missing_ok=True)
    return sheets_folder(outputs) / f"step_{step:08}.png"


def sheet_step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def list_sheets(outputs: Path) -> list[Path]:
    """Return the sheets of a run, newest first. Files with other names are the user's and not listed."""
    sheets = (path for path in sheets_folder(outputs).glob("step_*.png") if re.fullmatch(r"step_\d+\.png", path.name))
    return sorted(sheets, key=sheet_step, reverse=True)
