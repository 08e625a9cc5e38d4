"""A folder of HR images -> the training h5 of them, made once and taken again for as long as the images stay as they are."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from rdn_fast.cache import cache_folder
from rdn_fast.data.h5 import Pairs
from rdn_fast.data.prepare import image_files, prepare
from rdn_fast.errors import UserError

_RECIPE = 1  # raise it when prepare makes other pairs of the same images
_ATTRIBUTE = "made_from"  # of the file's root: the key of its images


def training_pairs(folder: str | Path, scale: int) -> Pairs:
    """The pairs that `rdn-fast prepare` makes of the folder's images, at `scale`, from an h5 file made now if there is none, or only an old one.

    It is <folder>_x<scale>.rdn_fast.h5 beside the folder; where that cannot be written, a file in the user's cache folder.
    Any number of processes may come at once: one makes it, the others wait. An older file is replaced, not changed, so who
    has mapped it keeps it. UserError when no image can be used or no file written.
    """
    key = _key(folder, scale)
    for path in _places(folder, scale):
        pairs, _ = _open(path, key, scale)
        if pairs is not None:
            return pairs
    for path in _places(folder, scale):
        # Longer than the name of the file that is written aside: a place that takes the one takes the other.
        lock = path.with_name(f".{path.name}.being-made.lock")
        try:
            handle = _lock(lock, f"--train-dir {folder}: another process is making {path}; waiting for it")
        except OSError as error:
            reason = error.strerror
            continue
        try:
            return _make(path, folder, scale)
        finally:
            with contextlib.suppress(OSError):
                lock.unlink()  # still locked: whoever waits for it sees that it is gone, and makes another
            os.close(handle)
    raise UserError(f"--train-dir {folder}: no training file can be written, at last not {path} ({reason}); prepare one elsewhere and give --train-file")


def _key(folder: str | Path, scale: int) -> str:
    """What decides the pairs: the images' names, sizes and times, the scale, and how pairs are made."""
    try:
        stats = [(path.name, path.stat()) for path in image_files(folder)]
    except UserError as error:
        raise UserError(f"--train-dir {error}") from None
    except OSError as error:
        raise UserError(f"--train-dir {folder}: cannot be read ({error.strerror}); give a folder of images") from None
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(json.dumps([_RECIPE, scale, files]).encode()).hexdigest()


def _places(folder: str | Path, scale: int) -> Iterator[Path]:
    """Where its file may be, best first."""
    folder = Path(os.path.abspath(folder))  # not resolved: beside a link, where the user knows it
    if folder.name:  # not the root
        yield folder.with_name(f"{folder.name}_x{scale}.rdn_fast.h5")
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()
    yield cache_folder() / f"{folder.name[:40]}-{digest[:16]}_x{scale}.rdn_fast.h5"


def _open(path: Path, key: str, scale: int) -> tuple[Pairs | None, str]:
    """The file's pairs, if they are those of the images with this key; else None, and what is wrong with it."""
    if not os.path.exists(path):  # unlike Path.exists, also for a name that is too long
        return None, "is not there yet"
    try:
        pairs = Pairs(path, scale)
    except UserError:
        return None, "is damaged"
    return (pairs, "") if pairs.attributes.get(_ATTRIBUTE) == key else (None, "is out of date")


def _make(path: Path, folder: str | Path, scale: int) -> Pairs:
    """Make the file, unless somebody has made it while we waited for the lock."""
    key = _key(folder, scale)
    pairs, flaw = _open(path, key, scale)
    if pairs is not None:
        return pairs
    for half_written in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            half_written.unlink()  # of a process that was killed
    print(f"--train-dir {folder}: {path} {flaw}; making it. Later runs take it as it is; it may be deleted.", flush=True)
    prepare(folder, path, scale, flags=("--train-dir", "--train-dir"), attributes={_ATTRIBUTE: key})
    return Pairs(path, scale)


def _lock(path: Path, waiting: str) -> int:
    """An open lock file at `path`, locked by us alone; says `waiting` when another process holds it. OSError when it cannot be made."""
    said = False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not said:
                    print(waiting, flush=True)
                    said = True
                fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_at(path, handle):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the one before us has removed it: it locks nothing any more


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False
