"""The outputs folder of a run: ours alone while we write, and never overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from rdn_fast.distributed.process_group import Ranks
from rdn_fast.errors import UserError
from rdn_fast.files import atomic_write, lock
from rdn_fast.training.checkpoint import list_checkpoints


@contextmanager
def locked(outputs: Path, ranks: Ranks):
    """Hold the folder's lock on rank 0: two runs that write to one folder would destroy each other's checkpoints."""
    held: list[FileLock] = []  # not a result of on_rank0, which other ranks would receive
    ranks.on_rank0(lambda: held.append(lock_folder(outputs)))
    try:
        yield
    finally:
        for folder_lock in held:
            folder_lock.release()


def lock_folder(outputs: Path, patience: float = 20.0) -> FileLock:
    """Lock the folder for this run and remove half-written files of a killed one. Raises UserError when another run holds it.

    patience: seconds to wait; the last rank of a killed run may take a step to let go.
    """
    try:
        (outputs / "checkpoints").mkdir(parents=True, exist_ok=True)
        held = lock(outputs / ".lock", patience)
    except Timeout:
        raise UserError(
            f"--outputs-dir {outputs}: another run is writing there; wait for it or choose another folder"
        ) from None
    except OSError as error:
        reason = f"cannot be written and locked ({error.strerror})"
        raise UserError(f"--outputs-dir {outputs}: {reason}; choose another folder") from None
    for half_written in (*outputs.glob(".*.tmp"), *outputs.glob("checkpoints/.*.tmp")):
        half_written.unlink()
    return held


def set_aside(outputs: Path, say: Callable[[str], None], after: int | None = None) -> None:
    """Move an earlier run's files out of the way of a new one; with `after`, only its checkpoints of later steps."""
    if after is None:
        earlier = [
            path
            for path in (outputs / name for name in ("metrics.jsonl", "best.pth", "last.pth", "tensorboard"))
            if path.exists()
        ]
        earlier += sorted(outputs.glob("checkpoints/step_*"))
    else:
        earlier = [
            path for path in list_checkpoints(outputs / "checkpoints") if int(path.stem.removeprefix("step_")) > after
        ]
    if earlier:
        aside = outputs / datetime.now().strftime("earlier-%Y%m%d-%H%M%S-%f")
        (aside / "checkpoints").mkdir(parents=True)
        for path in earlier:
            path.rename(aside / path.relative_to(outputs))
        what = "an earlier run" if after is None else f"checkpoints after step {after}"
        say(f"{outputs} held {what}; now in {aside}")


def claim(outputs: Path, launches: list[str], global_batch: int) -> None:
    """Note, once an earlier run is out of the way, that what lies in the folder from now on is of this run."""
    text = json.dumps({"launches": launches, "global_batch": global_batch})
    atomic_write(outputs / ".run", lambda file: file.write(text.encode()))


def resumable_batch(outputs: Path, launches: list[str]) -> int | None:
    """The global batch of the run in the folder when one of these launches began it and it has saved: we go on with it. None: we are another run."""
    try:
        run = json.loads((outputs / ".run").read_text())
        ours = {*launches} & {*run["launches"]}
        return run["global_batch"] if ours and list_checkpoints(outputs / "checkpoints") else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # a file that is not ours says nothing of us
        return None
