"""The outputs folder of a run: ours alone while we write, and never overwritten."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rdn_fast.checkpoint import newest, write_aside
from rdn_fast.errors import UserError
from rdn_fast.ranks import Ranks


@contextmanager
def locked(outputs: Path, ranks: Ranks):
    """Make the folder ours: two runs that write to one folder would destroy each other's checkpoints."""
    handle = ranks.on_first(lock, outputs)
    try:
        yield
    finally:
        if ranks.first:
            os.close(handle)


def lock(outputs: Path, patience: float = 20.0) -> int:
    """An open, exclusively locked file of the folder (a killed run's last rank may take a step to let go); UserError when another run holds it."""
    try:
        (outputs / "checkpoints").mkdir(parents=True, exist_ok=True)
        handle = os.open(outputs / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        deadline = time.monotonic() + patience
        while not _try_lock(handle):
            if time.monotonic() > deadline:
                os.close(handle)
                raise UserError(f"--outputs-dir {outputs}: another run is writing there; wait for it or choose another folder")
            time.sleep(0.2)
    except OSError as error:
        raise UserError(f"--outputs-dir {outputs}: cannot be written and locked ({error.strerror}); choose another folder") from None
    for half_written in (*outputs.glob(".*.tmp"), *outputs.glob("checkpoints/.*.tmp")):
        half_written.unlink()  # of a run that was killed
    return handle


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def set_aside(outputs: Path, say: Callable[[str], None], after: int | None = None) -> None:
    """Move an earlier run's files out of the way of a new one; with `after`, only its checkpoints of later steps."""
    if after is None:
        earlier = [path for path in (outputs / name for name in ("metrics.jsonl", "best.pth", "last.pth", "tensorboard")) if path.exists()]
        earlier += sorted(outputs.glob("checkpoints/step_*"))
    else:
        earlier = [path for path in newest(outputs / "checkpoints") if int(path.stem.removeprefix("step_")) > after]
    if earlier:
        aside = outputs / datetime.now().strftime("earlier-%Y%m%d-%H%M%S-%f")
        (aside / "checkpoints").mkdir(parents=True)
        for path in earlier:
            path.rename(aside / path.relative_to(outputs))
        what = "an earlier run" if after is None else f"checkpoints after step {after}"
        say(f"{outputs} held {what}; now in {aside}")


def own(outputs: Path, launches: list[str], global_batch: int) -> None:
    """Note, once an earlier run is out of the way, that what lies in the folder from now on is of this run."""
    text = json.dumps({"launches": launches, "global_batch": global_batch})
    write_aside(outputs / ".run", lambda file: file.write(text.encode()))


def begun(outputs: Path, launches: list[str]) -> int | None:
    """The global batch of the run in the folder when one of these launches began it and it has saved: we go on with it. None: we are another run."""
    try:
        run = json.loads((outputs / ".run").read_text())
        ours = {*launches} & {*run["launches"]}
        return run["global_batch"] if ours and newest(outputs / "checkpoints") else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # a file that is not ours says nothing of us
        return None
