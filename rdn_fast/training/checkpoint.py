"""Files of tensors, read without running code; weights and training checkpoints are written aside, synced and renamed.

OUT/checkpoints/step_*.pt holds all that a run needs to go on exactly; the newest two are kept.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from rdn_fast.errors import Failure, UserError
from rdn_fast.files import atomic_write
from rdn_fast.weights.load import load_tensors

KEEP = 2
_KEYS = {"model", "optimizer", "average", "step", "progress", "metrics_bytes", "settings", "recipe", "mode"}


def host_copy(value):
    """The same nesting of dicts, lists and tuples with every tensor copied to the host, contiguous."""
    if isinstance(value, torch.Tensor):
        copy = torch.empty(value.shape, dtype=value.dtype)
        return copy.copy_(value.detach())
    if isinstance(value, dict):
        return {key: host_copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(host_copy(item) for item in value)
    return value


class CheckpointWriter:
    """Writes files in a background thread, so that the device does not wait for the disk.

    `put` hands over host copies; an error is raised by the next `put` or by `close`, as Failure.
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
        """Save `value` (a host copy) to `path`; with `prune`, afterwards drop all but the newest checkpoints of its folder."""
        self._check()
        self._jobs.put((path, value, prune))

    def close(self) -> None:
        """Wait until all is written."""
        self._jobs.put(None)
        self._thread.join()
        self._check()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            path, value, prune = job
            try:
                if self._failed is None:
                    atomic_write(path, lambda file, value=value: torch.save(value, file))
                    for old in list_checkpoints(path.parent)[KEEP:] if prune else ():
                        old.unlink(missing_ok=True)
            except Exception as error:  # whatever it is, the run must hear of it
                self._failed = path, error
            finally:
                self._jobs.task_done()

    def _check(self) -> None:
        if self._failed is not None:
            path, error = self._failed
            reason = " ".join(str(error).split())[:200]
            raise Failure(f"{path}: cannot be written ({reason}); free some space, then go on with --resume auto")


def checkpoint_path(outputs: Path, step: int) -> Path:
    return outputs / "checkpoints" / f"step_{step:08}.pt"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first; files that are named differently are not ours."""
    ours = (path for path in folder.glob("step_*.pt") if re.fullmatch(r"step_\d+\.pt", path.name))
    return sorted(ours, key=lambda path: int(path.stem.removeprefix("step_")), reverse=True)


def load_checkpoint(resume: str, outputs: Path, say: Callable[[str], None]) -> dict | None:
    """The state to go on from: a file's, or for `auto` the newest good one of outputs/checkpoints (None when there is none).

    A damaged one is named and the one before it is taken; UserError when all are damaged.
    """
    if resume != "auto":
        return _checked(Path(resume))
    damaged = []
    for path in list_checkpoints(outputs / "checkpoints"):
        try:
            state = _checked(path)
        except UserError as error:
            damaged.append(path)
            say(f"{error}; going back to the checkpoint before it")
        else:
            for bad in damaged:
                bad.rename(bad.with_suffix(".damaged"))  # it must not count as one of those that are kept
            return state
    if damaged:
        raise UserError(f"{outputs / 'checkpoints'}: no checkpoint there can be read; remove the folder to start anew")
    say(f"--resume auto: no checkpoint in {outputs / 'checkpoints'} yet, starting anew")
    return None


def _checked(path: Path) -> dict:
    state, _ = load_tensors(path, checksums=True)
    if not isinstance(state, dict) or not state.keys() >= _KEYS:
        raise UserError(f"{path}: is no training checkpoint of this version (weights go to --weights-file)")
    return state
