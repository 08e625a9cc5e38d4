"""The training file changes under a run, or the clock is set back: the run goes on exactly, or ends in one line."""

from __future__ import annotations

import os
import shutil
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

from rdn_fast.data.prefetch import PrefetchLoader
from tests.campaign.trial import SAME, Kind, command_line, require, require_one_line
from tests.runs import TINY, assert_same_run, events, make_data

_STEPS = 60
_RECIPE = (*TINY, "--batch-size", 4, "--opt-level", "O0", "--rdb", "naive", "--max-steps", _STEPS, "--epochs", 100)
_FLAGS = (*_RECIPE, "--eval-every", 5, "--checkpoint-every", "1e-9")


class Made(NamedTuple):
    file: Path
    other: Path  # of other pictures
    evaluation: Path
    whole: Path  # the folder of an undisturbed run


def _train(made: Made, file: Path, outputs: Path, *flags) -> tuple[int, str, str]:
    where = ("--train-file", file, "--eval-file", made.evaluation, "--outputs-dir", outputs)
    return command_line("train", *where, *_FLAGS, *flags)


def _prepare(folder: Path) -> Made:
    shutil.rmtree(folder, ignore_errors=True)
    data, other = make_data(folder / "data"), make_data(folder / "other", images=18)
    name = "DIV2K_x2.h5"
    made = Made(data / name, other / name, data / "Set5_x2.h5", folder / "whole")
    code, _, err = _train(made, made.file, made.whole)
    require(code == 0, err)
    return made


# ---- the file ----


def _truncate(rng, file: Path, other: Path) -> None:
    os.truncate(file, rng.integers(file.stat().st_size))


def _empty(rng, file: Path, other: Path) -> None:
    os.truncate(file, 0)


def _overwrite(rng, file: Path, other: Path) -> None:
    file.write_bytes(other.read_bytes())


def _replace(rng, file: Path, other: Path) -> None:
    os.replace(shutil.copy(other, file.with_suffix(".new")), file)


def _delete(rng, file: Path, other: Path) -> None:
    file.unlink()


def _change(made: Made, seed: int, folder: Path) -> str:
    """Change the file at a random moment of the run, then restore it and resume."""
    rng = np.random.default_rng([8, seed])
    fault = (_truncate, _empty, _overwrite, _replace, _delete)[rng.integers(5)]
    mode = ("mmap", "mmap", "h5py", "resident")[rng.integers(4)]
    flags = ("--data-mode", mode, "--num-workers", rng.integers(3))
    file, outputs, moment = Path(shutil.copy(made.file, folder / "train.h5")), folder / "outputs", rng.integers(_STEPS)
    delay, fill = rng.uniform(0, 0.003), PrefetchLoader._fill

    def strike() -> None:
        time.sleep(delay)
        fault(rng, file, made.other)

    def filled(self, step, slot) -> None:
        if step == moment and not threads:
            threads.append(threading.Thread(target=strike))
            threads[0].start()
        fill(self, step, slot)

    threads: list[threading.Thread] = []
    with mock.patch.object(PrefetchLoader, "_fill", filled):
        code, _, err = _train(made, file, outputs, *flags)
    require(threads, "the moment never came")
    threads[0].join()
    if code:
        require_one_line(code, err, file, "--resume auto" if code == 1 else "")
        file.unlink(missing_ok=True)
        shutil.copy(made.file, file)
        code, _, err = _train(made, file, outputs, *flags, "--resume", "auto")
        require(code == 0, err)
    assert_same_run(outputs, made.whole)
    return SAME


# ---- the clock ----


def _set_back(made: Made, seed: int, folder: Path) -> str:
    """Set the clock back or forth by up to a year while a run goes on, and between it and its resume."""
    rng, real, outputs = np.random.default_rng([9, seed]), time.time, folder / "outputs"
    jumps = rng.integers(1, 60, 4).cumsum()  # calls of time.time()
    offsets = rng.choice([-3.2e7, -3600, -1, 3600], 5)
    calls = 0

    def now() -> float:
        nonlocal calls
        calls += 1
        return real() + offsets[np.searchsorted(jumps, calls)]

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(now(), tz)

    with mock.patch("time.time", now), mock.patch("rdn_fast.training.run_folder.datetime", Clock):
        stop = int(rng.integers(1, _STEPS))
        for steps in (stop, _STEPS):
            code, _, err = _train(made, made.file, outputs, "--max-steps", steps, "--resume", "auto")
            require(code == 0, err)
    ours, whole = ((run / "last.pth").read_bytes() for run in (outputs, made.whole))
    require(ours == whole, "last.pth has other bytes")
    require(events(outputs, "step") == events(made.whole, "step"), "the steps have other metrics")
    require(not [*outputs.glob("earlier-*")], "the run was set aside")
    _require_tensorboard(outputs)
    return SAME


def _require_tensorboard(outputs: Path) -> None:
    """TensorBoard must show every step's loss once, in order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(outputs / "tensorboard"), size_guidance={"scalars": 0})
    shown.Reload()
    found = [(event.step, np.float32(event.value)) for event in shown.Scalars("step/loss")]
    expected = [(record["step"], np.float32(record["loss"])) for record in events(outputs, "step")]
    require(found == expected, f"TensorBoard shows steps {[step for step, _ in found]}")


KINDS = (
    Kind(
        "file",
        "A training file that is cut, emptied, overwritten, replaced or deleted while it is mapped: the run goes on "
        "with what it opened or ends in one line, and its resume gives the bytes of an undisturbed run",
        200,
        _change,
        _prepare,
        batch=50,
        cpu_seconds=120,
    ),
    Kind(
        "clock",
        "A clock that is set back or forth while a run trains and before its resume changes nothing",
        50,
        _set_back,
        _prepare,
        batch=25,
        cpu_seconds=120,
    ),
)
