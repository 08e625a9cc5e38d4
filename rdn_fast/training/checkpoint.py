"""Training checkpoints: outputs/checkpoints/step_*.pt, each with all that a run needs to resume exactly."""

from __future__ import annotations

import os
import queue
import re
import threading
from collections.abc import Callable
from functools import partial
from operator import methodcaller
from pathlib import Path

import torch

from rdn_fast.errors import Failure, UserError, one_line
from rdn_fast.files import atomic_write
from rdn_fast.weights.load import load_tensors

KEEP = 2  # checkpoints in outputs/checkpoints
_KEYS = {"model", "optimizer", "average", "step", "progress", "metrics_bytes", "settings", "recipe", "mode"}


def host_copy(value):
    """Return the same nesting of dicts, lists and tuples with every tensor copied to the host, contiguous."""
    if isinstance(value, torch.Tensor):
        copy = torch.empty(value.shape, dtype=value.dtype)
        return copy.copy_(value.detach())
    if isinstance(value, dict):
        return {key: host_copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(host_copy(item) for item in value)
    return value


class CheckpointWriter:
    """Writes checkpoints and weights in a thread, so that training does not wait for the disk.

    An error of the thread is raised as Failure by the next put() or close(). Later files are not written.
    """

    def __init__(self):
        self._jobs: queue.Queue = queue.Queue()
        self._failed: tuple[Path, Exception] | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        return self._jobs.unfinished_tasks > 0

    def put(self, path: Path, value, prune: bool = False) -> None:
        """Enqueue an atomic write of `value` to `path`: bytes as they are, anything else, a host copy, by torch.save.

        prune: afterwards delete all but the KEEP newest checkpoints of its folder.
        """
        self._raise_failure()
        self._jobs.put((path, value, prune))

    def close(self) -> None:
        """Wait until everything is written."""
        self._jobs.put(None)
        self._thread.join()
        self._raise_failure()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            path, value, prune = job
            try:
                if self._failed is None:
                    write = methodcaller("write", value) if isinstance(value, bytes) else partial(torch.save, value)
                    atomic_write(path, write)
                    for old in list_checkpoints(path.parent)[KEEP:] if prune else ():
                        old.unlink(missing_ok=True)
            except Exception as error:  # any error must reach the training loop
                self._failed = path, error
            finally:
                self._jobs.task_done()

    def _raise_failure(self) -> None:
        if self._failed is not None:
            path, error = self._failed
            remedy = "free some space, then go on with --resume auto"
            raise Failure(f"{path}: cannot be written ({one_line(error)}); {remedy}")


def checkpoint_path(outputs: Path, step: int) -> Path:
    return outputs / "checkpoints" / f"step_{step:08}.pt"


def checkpoint_step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, newest first. Files with other names are the user's and not listed."""
    checkpoints = (path for path in folder.glob("step_*.pt") if re.fullmatch(r"step_\d+\.pt", path.name))
    return sorted(checkpoints, key=checkpoint_step, reverse=True)


def load_checkpoint(resume: str, outputs: Path, say: Callable[[str], None]) -> dict | None:
    """Return the state to resume from: that of the file `resume`, or for "auto" of the newest readable checkpoint.

    "auto" names each damaged checkpoint through `say`, renames it and goes back to the one before it. It returns None
    when there is no checkpoint at all. Raises UserError when none can be read.
    """
    if resume != "auto":
        if os.path.isdir(resume):
            remedy = "give one of the checkpoints in it, or --resume auto and the run's --outputs-dir"
            raise UserError(f"--resume {resume}: is a folder; {remedy}")
        return _load_state(Path(resume))
    damaged = []
    for path in list_checkpoints(outputs / "checkpoints"):
        try:
            state = _load_state(path)
        except UserError as error:
            damaged.append(path)
            say(f"{error}; going back to the checkpoint before it")
        else:
            for bad in damaged:
                bad.rename(bad.with_suffix(".damaged"))  # must not count among the KEEP newest
            return state
    if damaged:
        raise UserError(f"{outputs / 'checkpoints'}: no checkpoint there can be read; remove the folder to start anew")
    say(f"--resume auto: no checkpoint in {outputs / 'checkpoints'} yet, starting anew")
    return None


def _load_state(path: Path) -> dict:
    state, _ = load_tensors(path)
    if not isinstance(state, dict) or not state.keys() >= _KEYS:
        raise UserError(f"{path}: is no training checkpoint of this version (weights go to --weights-file)")
    return state
