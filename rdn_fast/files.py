"""Files that other processes may read at any time: the one atomic write and the one lock."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rdn_fast.errors import UserError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield the name of a temporary file beside `path`; at the end of the block sync it and rename it to `path`.

    Raises OSError. After any exception `path` is unchanged and the temporary file is gone.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # not a pid: containers may share a folder
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)  # makes the rename durable


def atomic_write(path: str | Path, write: Callable) -> None:
    """Call write(file), the file open in binary mode, and put what it wrote at `path` atomically. Raises OSError."""
    with atomic_path(path) as temporary, temporary.open("xb") as file:
        write(file)


def write_result(path: str | Path, content: bytes, name: str) -> None:
    """Write a command's result atomically. Raises UserError, beginning with `name`, when it cannot be written."""
    try:
        atomic_write(path, lambda file: file.write(content))
    except OSError as error:
        remedy = "free some space or choose another place"
        raise UserError(f"{name}: cannot be written ({error.strerror}); {remedy}") from None


def lock(path: str | Path, patience: float = -1, waiting: Callable[[], None] | None = None) -> FileLock:
    """Lock the file exclusively among processes; release() the result. The kernel frees the lock of a killed process.

    patience: seconds to wait for another holder, -1: without limit. waiting: called once if there is one.
    Raises filelock.Timeout, and OSError when the file cannot be made.
    """
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


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
