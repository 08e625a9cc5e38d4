"""A folder of HR images -> its training h5, which is made once and used until the images change (--train-dir)."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rdn_fast.cache import cache_folder
from rdn_fast.data.degradation import PLAIN, Degradation
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.images import image_files
from rdn_fast.data.prepare import prepare
from rdn_fast.errors import UserError, why_no_file
from rdn_fast.files import lock
from rdn_fast.terminal import print_line

_RECIPE = 2  # to be increased when prepare makes other pairs of the same images
_DAMAGED = "is damaged"
_ATTRIBUTE = "made_from"  # of the file's root: the key of its images


class _Source(NamedTuple):
    """What a training h5 is made of. lr_dir: of LR pictures; None: LR images are made by `degradation`."""

    folder: str | Path
    scale: int
    degradation: Degradation
    lr_dir: str | Path | None


def training_pairs(
    folder: str | Path, scale: int, degradation: Degradation = PLAIN, lr_dir: str | Path | None = None
) -> PairedH5:
    """Open the training h5 that `rdn-fast prepare` makes of a folder's images. Make it if it is missing or out of date.

    It is <folder>_x<scale>.rdn_fast.h5 (with _matlab, _dn, ... before the dot for other degradations, and with
    _lr-1a2b3c4d for each lr_dir) beside the folder or, where that cannot be written, in the user's cache folder.
    Of several processes one makes the file and the others wait. An old file is replaced, not changed: processes that
    have mapped it keep it. lr_dir: a folder of LR pictures, taken instead of making them.
    Raises UserError when no image can be used, or no file can be written.
    """
    if os.path.isfile(folder):
        raise UserError(f"{folder}: is a file; give a folder of images (--train-file takes h5 files)")
    source = _Source(folder, scale, degradation if lr_dir is None else PLAIN, lr_dir)
    source.degradation.check_scale(scale)
    key = _key(source)
    for path in _places(source):
        pairs, _ = _open(path, key, scale)
        if pairs is not None:
            return pairs
    for path in _places(source):
        # Longer than the temporary name of an atomic write: a file system that takes this name takes that one, too.
        lock_file = path.with_name(f".{path.name}.being-made.lock")
        waiting = f"--train-dir {folder}: another process is making {path}; waiting for it"
        try:
            held = lock(lock_file, waiting=partial(print_line, waiting))
        except OSError as error:
            reason = error.strerror
            continue
        try:
            return _make(path, source)
        finally:
            with contextlib.suppress(OSError):
                lock_file.unlink()  # still locked: a waiting process sees that it is gone and makes another
            held.release()
    raise UserError(
        f"{folder}: no training file can be written, at last not {path} ({reason}); "
        "prepare one elsewhere and give --train-file"
    )


def _key(source: _Source) -> str:
    """Return a hash of what decides the pairs: names, sizes and times of images, and how prepare makes pairs."""
    other = [] if source.degradation == PLAIN else [source.degradation.in_words]
    if source.lr_dir is not None:
        other += [_digest(source.lr_dir), _states(source.lr_dir)]
    content = [_RECIPE, source.scale, _states(source.folder), *other]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _states(folder: str | Path) -> list[tuple[str, int, int]]:
    """Return name, size and time of every image of a folder."""
    try:
        stats = [(path.name, path.stat()) for path in image_files(folder) if why_no_file(path) is None]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); give a folder of images") from None
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _digest(folder: str | Path) -> str:
    """Return a hash of a folder's path."""
    return hashlib.sha256(os.fsencode(os.path.abspath(folder))).hexdigest()


def _places(source: _Source) -> Iterator[Path]:
    """Yield the paths that the folder's file may have, best first."""
    folder, scale, degradation, lr_dir = source
    words = [f"x{scale}"]
    if degradation.bicubic != PLAIN.bicubic:
        words.append(degradation.bicubic)
    if degradation.kind != PLAIN.kind:
        words.append(degradation.kind.replace(":", ""))
    if lr_dir is not None:
        words.append(f"lr-{_digest(lr_dir)[:8]}")
    end = "_".join(words) + ".rdn_fast.h5"
    folder = Path(os.path.abspath(folder))  # not resolved: beside a link, where the user knows it
    if folder.name:  # not the root
        yield folder.with_name(f"{folder.name}_{end}")
    yield cache_folder() / f"{folder.name[:40]}-{_digest(folder)[:16]}_{end}"


def _open(path: Path, key: str, scale: int) -> tuple[PairedH5 | None, str]:
    """Return the file's pairs if it was made of the images with this key; else None, and what is wrong with it."""
    if not os.path.exists(path):  # unlike Path.exists, also for a name that is too long
        return None, "is not there yet"
    try:
        pairs = PairedH5(path, scale)
        made_from = pairs.attribute(_ATTRIBUTE)
    except UserError:
        return None, _DAMAGED
    return (pairs, "") if made_from == key else (None, "is out of date")


def _make(path: Path, source: _Source) -> PairedH5:
    """Make the file, unless another process has made it while this one waited for the lock."""
    key, (folder, scale, degradation, lr_dir) = _key(source), source
    pairs, flaw = _open(path, key, scale)
    if pairs is not None:
        return pairs
    for half_written in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            half_written.unlink()  # of a process that was killed
    note = "Later runs take it as it is; it may be deleted."
    print_line(f"--train-dir {folder}: {path} {flaw}; making it. {note}")
    if flaw == _DAMAGED and path.is_file():
        path.unlink()  # its content may be that of any file, which prepare would not replace
    prepare(folder, path, scale, attributes={_ATTRIBUTE: key}, degradation=degradation, lr_dir=lr_dir)
    return PairedH5(path, scale)
