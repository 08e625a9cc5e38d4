"""The outputs folder of a run: locked while the run lasts. An earlier run's files are moved aside, not overwritten."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from rdn_fast.distributed.process_group import Ranks
from rdn_fast.errors import UserError
from rdn_fast.files import TEMPORARY, atomic_write, lock
from rdn_fast.training.checkpoint import checkpoint_step, list_checkpoints
from rdn_fast.training.snapshot import list_sheets, sheet_step, sheets_folder

SETTINGS = "settings.toml"


@contextmanager
def locked(outputs: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the folder's lock on rank 0: two runs in one folder would destroy each other's checkpoints."""
    held: list[FileLock] = []  # not the result of on_rank0, which is sent to the other ranks
    ranks.on_rank0(lambda: held.append(lock_folder(outputs)))
    try:
        yield
    finally:
        for folder_lock in held:
            folder_lock.release()


def lock_folder(outputs: Path, patience: float = 20.0) -> FileLock:
    """Make and lock the folder; delete temporary files of a killed run. Raises UserError if another run holds the lock.

    patience: seconds to wait for the lock. The last rank of a killed run may hold it for one more step.
    """
    try:
        (outputs / "checkpoints").mkdir(parents=True, exist_ok=True)
        held = lock(outputs / ".lock", patience)
    except Timeout:
        remedy = "wait for it or choose another folder"
        raise UserError(f"--outputs-dir {outputs}: another run is writing there; {remedy}") from None
    except OSError as error:
        reason = f"cannot be written and locked ({error.strerror})"
        raise UserError(f"--outputs-dir {outputs}: {reason}; choose another folder") from None
    for folder in (outputs, outputs / "checkpoints", sheets_folder(outputs)):
        for temporary in folder.glob(TEMPORARY):
            temporary.unlink(missing_ok=True)
    return held


def set_aside(outputs: Path, say: Callable[[str], None], after: tuple[int, int] | None = None) -> None:
    """Move an earlier run's files to a new folder earlier-*; with `after`, a step and an epoch, those of later ones."""
    checkpoints = outputs / "checkpoints"
    kept = {path: int(path.stem[6:]) for path in outputs.glob("epoch_*.pth") if re.fullmatch(r"epoch_\d+", path.stem)}
    if after is None:
        files = (outputs / name for name in ("metrics.jsonl", "best.pth", "last.pth", "tensorboard"))
        earlier = [path for path in files if path.exists()] + sorted(checkpoints.glob("step_*"))
        earlier += [*kept, *list_sheets(outputs)]
        if earlier and (outputs / SETTINGS).exists():
            earlier.insert(0, outputs / SETTINGS)  # first: without the others it is not known for an earlier run's
    else:
        step, epochs = after
        earlier = [path for path in list_checkpoints(checkpoints) if checkpoint_step(path) > step]
        earlier += [path for path in list_sheets(outputs) if sheet_step(path) > step]
        earlier += [path for path, epoch in kept.items() if epoch > epochs]
    if earlier:
        aside = outputs / datetime.now().strftime("earlier-%Y%m%d-%H%M%S-%f")
        for path in earlier:
            target = aside / path.relative_to(outputs)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.name == SETTINGS:  # stays until it is replaced: this run may have been started with it
                shutil.copy2(path, target)
            else:
                path.rename(target)
        what = "an earlier run" if after is None else f"checkpoints, crops or weights after step {after[0]}"
        say(f"{outputs} held {what}; now in {aside}")


def claim(outputs: Path, launch_ids: list[str], global_batch: int) -> None:
    """Record in outputs/.run that the files there are of these launches. Call after set_aside()."""
    text = json.dumps({"launches": launch_ids, "global_batch": global_batch})
    atomic_write(outputs / ".run", lambda file: file.write(text.encode()))


def resumable_batch(outputs: Path, launch_ids: list[str]) -> int | None:
    """Return the global batch of the run to resume after a restart; None for a new run.

    It is resumed when one of these launches has claimed the folder and saved a checkpoint there.
    """
    try:
        run = json.loads((outputs / ".run").read_text())
        same_launch = {*launch_ids} & {*run["launches"]}
        return run["global_batch"] if same_launch and list_checkpoints(outputs / "checkpoints") else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # no .run of ours
        return None
