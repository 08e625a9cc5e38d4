"""What runs have written so far: metrics.jsonl and sheets of crops, also of a run that was killed or goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rdn_fast.errors import UserError, one_line, why_no_file, why_no_folder
from rdn_fast.evaluation import sheet
from rdn_fast.evaluation.sheet import Sheet
from rdn_fast.training.snapshot import list_sheets

_REMEDY = "give the --outputs-dir of a training run"
_LARGEST = 2**53  # steps, which float64 holds exactly
_LARGEST_VALUE = 1e100


@dataclass
class Run:
    """What is known of a run. Numbers that are no numbers, or not finite, are NaN."""

    folder: str
    name: str
    starts: list[dict] = field(default_factory=list)  # records of starts and resumes, as they were written
    scales: list[dict] = field(default_factory=list)  # records of halved loss scales
    steps: dict[str, np.ndarray] = field(default_factory=dict)  # "step", "lr", "loss", "skipped": [N], by step
    epochs: dict[str, np.ndarray] = field(default_factory=dict)  # "step" and each of _EPOCH: [M], by step
    sheets: list[Sheet] = field(default_factory=list)  # by step
    notes: list[str] = field(default_factory=list)  # what of the files could not be read

    @property
    def settings(self) -> dict:
        """Return what the records of starts and resumes say, of each name the last."""
        return {name: value for start in self.starts for name, value in start.items()}

    @property
    def last_step(self) -> int:
        return int(max((*self.steps["step"], *self.epochs["step"], 0)))

    @property
    def bicubic_psnr(self) -> float:
        """Return bicubic's mean PSNR-Y in dB; NaN where not every picture of the validation set was looked at."""
        newest = self.sheets[-1] if self.sheets else None
        if newest is None or len(newest.measured) != newest.pictures:
            return np.nan
        return float(np.mean([each.bicubic_psnr for each in newest.measured]))

    def minutes(self, steps: np.ndarray) -> np.ndarray | None:
        """Return the minutes since the start at these steps; None where no epoch has ended, which tells the time.

        Between the ends of epochs time is interpolated, after the last one it is extrapolated.
        """
        known = np.isfinite(self.epochs["seconds"])
        at, seconds = self.epochs["step"][known], np.maximum.accumulate(self.epochs["seconds"][known])
        if not at.any():
            return None
        at, seconds = np.concatenate([[0.0], at]), np.concatenate([[0.0], seconds])
        slope = (seconds[-1] - seconds[-2]) / max(1.0, at[-1] - at[-2])
        after = np.maximum(0, steps - at[-1]) * slope
        return (np.interp(steps, at, seconds) + after) / 60


_STEP = ("lr", "loss", "skipped")
_EPOCH = ("epoch", "seconds", "loss", "fps_end_to_end", "fps_seed_window", "psnr_y", "psnr_y_compat")


def read_run(folder: str) -> Run:
    """Read the outputs folder of a run. Raises UserError for a folder that is none."""
    if (flaw := why_no_folder(folder)) is not None:
        raise UserError(f"{folder}: {flaw}; {_REMEDY}")
    log = Path(folder) / "metrics.jsonl"
    if (flaw := why_no_file(log)) is not None:
        raise UserError(f"{log}: {flaw}; {_REMEDY}")
    try:
        content = log.read_bytes()
    except OSError as error:
        raise UserError(f"{log}: cannot be read ({error.strerror}); make it readable") from None
    run = Run(str(folder), str(folder))
    _read_log(run, content)
    for path in reversed(list_sheets(Path(folder))):
        try:
            read = sheet.decode(path.read_bytes())
        except (OSError, ValueError) as error:
            run.notes.append(f"{path.name} is left out: {one_line(error)}")
            continue
        if read.step <= run.last_step:  # else it is of a run that was killed, before its last checkpoint
            run.sheets.append(read)
    return run


def _read_log(run: Run, content: bytes) -> None:
    steps: list[tuple[float, ...]] = []
    epochs: list[tuple[float, ...]] = []
    *lines, rest = content.split(b"\n")
    damaged = 0
    for line in lines:
        record = _record(line)
        if record is None:
            damaged += 1
        elif record["event"] == "step":
            steps.append((record["step"], *(_number(record.get(key)) for key in _STEP)))
        elif record["event"] == "epoch":
            epochs.append((record["step"], *(_number(record.get(key)) for key in _EPOCH)))
        elif record["event"] in ("start", "resume"):
            run.starts.append(record)
        elif record["event"] == "loss_scale":
            run.scales.append(record)
    run.steps, run.epochs = _columns(steps, _STEP), _columns(epochs, _EPOCH)
    if damaged:
        run.notes.append(f"{damaged} of {len(lines)} lines of metrics.jsonl are damaged and left out")
    if rest:
        run.notes.append("the last line of metrics.jsonl is cut off: the run goes on, or was killed")
    if not steps:
        run.notes.append("metrics.jsonl holds no step yet")


def _record(line: bytes) -> dict | None:
    """Return the record of a line; None where there is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        return None
    step = record.get("step")
    return record if type(step) is int and 0 <= step < _LARGEST else None


def _number(value) -> float:
    """Return a number that can be drawn, True as 1, or NaN."""
    try:
        number = float(value) if isinstance(value, (int, float)) else np.nan
    except OverflowError:
        number = np.nan
    return number if abs(number) < _LARGEST_VALUE else np.nan


def _columns(rows: list[tuple[float, ...]], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the columns "step" and `names`, by step; of several rows of a step the last one."""
    table = np.array(rows, np.float64).reshape(-1, 1 + len(names))[::-1]
    _, first = np.unique(table[:, 0], return_index=True)
    return dict(zip(("step", *names), table[first].T, strict=True))
