"""Files that other processes may read at any time: the one atomic write, what it may replace, and the one lock."""

from __future__ import annotations

import errno
import math
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, SoftFileLock, Timeout

from rdn_fast.errors import UserError, cannot_write

TEMPORARY = f".*.{'[0-9a-f]' * 8}.tmp"  # what a killed process may leave of atomic_write()
_HEAD = 65_536  # bytes of a file that tell its kind
# Of opening or syncing a folder: one that may not be read, as on Windows none; file systems that sync no folders.
_NO_SYNC = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.EBADF)


class Kind(NamedTuple):
    """A kind of output. words: "a report of rdn-fast eval". matches(head): whether a file that begins so is one."""

    words: str
    matches: Callable[[bytes], bool]


def check_replaceable(path: str | Path, kind: Kind, name: str) -> None:
    """Raise UserError, beginning with `name`, for a folder or a file at `path` that is not of the kind.

    An empty file counts as none.

    An output replaces earlier outputs of its kind, never a picture, weights or notes that a mistyped name hits.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f"{name}: is a folder; give a file")
        if not path.exists():
            return
        head = None
        if path.is_file():  # to open a pipe would wait for its writer
            with path.open("rb") as file:
                head = file.read(_HEAD)
    except OSError:  # a name that is too long: writing raises the error with its reason
        return
    if head is None or (head and not kind.matches(head)):
        raise UserError(f"{name}: is there already, and is not {kind.words}; give another name")


def check_writable(path: str | Path, name: str) -> None:
    """Raise UserError, beginning with `name`, when a file at `path` could not be written: tried by one beside it."""
    path = Path(path)
    temporary = _temporary(path)
    if os.path.isdir(path):
        raise UserError(f"{name}: is a folder; give a file")
    try:
        try:
            temporary.open("xb").close()
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{name}: {cannot_write(error)}") from None


@contextmanager
def atomic_path(path: str | Path, replace: bool = True) -> Iterator[Path]:
    """Yield the name of a temporary file beside `path`; at the end of the block sync it and rename it to `path`.

    replace: whether it may take the place of a file; without, FileExistsError is raised, also for a file that appears
    during the block. Raises OSError, also where `path` is no regular file. After any exception `path` is unchanged and
    the temporary file is gone.
    """
    path = Path(path)
    _check_regular(path)
    temporary = _temporary(path)
    try:
        yield temporary
        _put(temporary, path, replace)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: str | Path, write: Callable, replace: bool = True) -> None:
    """Call write(file), the file open in binary mode, and put what it wrote at `path`, as atomic_path() does.

    Not by atomic_path(): a signal that is heard between this block and that one's end would leave the temporary file.
    """
    path = Path(path)
    _check_regular(path)
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            write(file)
        _put(temporary, path, replace)
    finally:
        temporary.unlink(missing_ok=True)


def _put(temporary: Path, path: Path, replace: bool) -> None:
    """Sync the temporary file and rename it to `path`."""
    _sync(temporary)
    if not replace:
        _claim(path, temporary)
    os.replace(temporary, path)
    try:
        _sync(path.parent)  # makes the rename durable
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def write_result(path: str | Path, content: bytes, name: str, kind: Kind) -> None:
    """Write a command's result atomically. Raises UserError, beginning with `name`, when it cannot be written.

    kind: the only one that it replaces.
    """
    check_replaceable(path, kind, name)
    try:
        atomic_write(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"{name}: {cannot_write(error)}") from None


def has_locks() -> bool:
    """Return whether the system frees a killed process's locks; where not, filelock takes files that stay."""
    return FileLock is not SoftFileLock


def lock(path: str | Path, patience: float = -1, waiting: Callable[[], None] | None = None) -> FileLock:
    """Lock the file exclusively among processes; release() the result. The kernel frees the lock of a killed process.

    patience: seconds to wait for another holder, -1: without limit. waiting: called once if there is one.
    Raises filelock.Timeout, OSError when the file cannot be made, and UserError where the system has no locks.
    """
    if not has_locks():
        systems = "train on Linux or macOS (Windows, which has others, is not tried); the other commands need none"
        raise UserError(f"{path}: training locks files, and this system lacks fcntl's locks; {systems}")
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))  # FileLock would poll for ever where the file cannot be made
    held = FileLock(path, mode=0o666)
    try:
        held.acquire(blocking=False)
    except Timeout:
        if waiting is not None:
            waiting()
        held.acquire(timeout=patience, poll_interval=0.2)
    return held


def finite(value):
    """Return the same nesting of dicts and lists with None for infinities and NaN, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_regular(path: Path) -> None:
    """Raise OSError where `path` is neither a file nor a folder."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is a device or a pipe, no file", str(path))


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # not a pid: containers may share a folder


def _claim(path: Path, temporary: Path) -> None:
    """Make a file at `path`, which `temporary` is about to replace. Raises FileExistsError when there is one."""
    try:
        os.link(temporary, path)  # whole from the first moment
    except FileExistsError:
        raise
    except OSError:  # file systems without hard links
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows syncs what can be written only
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
