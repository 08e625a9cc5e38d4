"""A folder of HR images -> the training h5 of them, made once and taken again for as long as the images stay as they are."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from rdn_fast.cache import cache_folder
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.images import image_files
from rdn_fast.data.prepare import prepare
from rdn_fast.errors import UserError
from rdn_fast.files import lock

_RECIPE = 1  # raise it when prepare makes other pairs of the same images
_ATTRIBUTE = "made_from"  # of the file's root: the key of its images


def training_pairs(folder: str | Path, scale: int) -> PairedH5:
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
        # Longer than the temporary name of an atomic write: a folder that takes the lock's name takes that one too.
        lock_file = path.with_name(f".{path.name}.being-made.lock")
        waiting = f"--train-dir {folder}: another process is making {path}; waiting for it"
        try:
            held = lock(lock_file, waiting=lambda line=waiting: print(line, flush=True))
        except OSError as error:
            reason = error.strerror
            continue
        try:
            return _make(path, folder, scale)
        finally:
            with contextlib.suppress(OSError):
                lock_file.unlink()  # still locked: a waiting process sees that it is gone and makes another
            held.release()
    raise UserError(
        f"--train-dir {folder}: no training file can be written, at last not {path} ({reason}); prepare one elsewhere and give --train-file"
    )


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


def _open(path: Path, key: str, scale: int) -> tuple[PairedH5 | None, str]:
    """The file's pairs, if they are those of the images with this key; else None, and what is wrong with it."""
    if not os.path.exists(path):  # unlike Path.exists, also for a name that is too long
        return None, "is not there yet"
    try:
        pairs = PairedH5(path, scale)
    except UserError:
        return None, "is damaged"
    return (pairs, "") if pairs.attributes.get(_ATTRIBUTE) == key else (None, "is out of date")


def _make(path: Path, folder: str | Path, scale: int) -> PairedH5:
    """Make the file, unless somebody has made it while we waited for the lock."""
    key = _key(folder, scale)
    pairs, flaw = _open(path, key, scale)
    if pairs is not None:
        return pairs
    for half_written in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            half_written.unlink()  # of a process that was killed
    print(
        f"--train-dir {folder}: {path} {flaw}; making it. Later runs take it as it is; it may be deleted.", flush=True
    )
    prepare(folder, path, scale, flags=("--train-dir", "--train-dir"), attributes={_ATTRIBUTE: key})
    return PairedH5(path, scale)
