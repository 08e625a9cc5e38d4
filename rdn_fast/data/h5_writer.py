"""Pairs -> h5 in the reference's format: groups lr and hr, contiguous uint8 [H, W, 3] RGB, written atomically."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from rdn_fast.data.h5_open import open_h5
from rdn_fast.data.pairs import Pair
from rdn_fast.errors import UserError, cannot_write
from rdn_fast.files import Kind, atomic_path, check_replaceable

_KIND = Kind("an HDF5 file", lambda head: head.startswith(b"\x89HDF\r\n\x1a\n"))


def write_pairs(
    path: str | Path,
    pairs: Iterable[Pair | None],
    attributes: Mapping[str, str] | None = None,
) -> int:
    """Write pairs to an h5 file whose root has these attributes. Return how many.

    None in `pairs` stands for one that was skipped: it only gives Ctrl-C and SIGTERM a chance.
    Raises UserError as new_file().
    """
    n = 0
    with new_file(path) as (file, check):
        for name, text in (attributes or {}).items():
            set_text(file, name, text)
        groups = file.create_group("lr"), file.create_group("hr")
        for pair in pairs:
            if pair is not None:
                for group, image in zip(groups, (pair.lr, pair.hr), strict=True):
                    group.create_dataset(str(n), data=image)
                set_text(groups[1][str(n)], "name", pair.name)
                n += 1
            check()
    return n


def set_text(data: h5py.Group | h5py.Dataset, name: str, text: str) -> None:
    """Set an attribute to a fixed-length UTF-8 string.

    Variable-length ones, h5py's default for text, lie in the global heap. HDF5 loops for ever over some damaged heaps.
    """
    content = text.encode(errors="surrogateescape")
    data.attrs.create(name, np.array(content), dtype=h5py.string_dtype(length=max(1, len(content))))


@contextmanager
def new_file(path: str | Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """Yield an empty h5 file to fill, and check(), to be called after each image. Then move it to `path` atomically.

    check() raises when the disk is full, and after Ctrl-C or SIGTERM. After any error `path` is unchanged.
    Raises UserError for every OSError of the block, and for a file at `path` that holds no pairs, such as weights.
    """
    path = Path(path)
    _check_replaceable(path)
    with _deferred_interrupts() as handle_interrupt:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: {cannot_write(error)}") from None
        try:
            with atomic_path(path) as temporary, _HeldErrors(temporary) as raw:

                def check() -> None:
                    handle_interrupt()
                    raw.check()

                with h5py.File(raw, "w") as file:
                    yield file, check
                raw.check()
                _check_replaceable(path)  # it may have appeared since
        except OSError as error:
            raise UserError(f"{path}: {cannot_write(error)}") from None


def _check_replaceable(path: Path) -> None:
    check_replaceable(path, _KIND, str(path))
    try:
        with open_h5(path) as file:
            held = set(file)
    except OSError:  # there is none, or nothing can be read from it
        return
    if held and not {"lr", "hr"} <= held:
        raise UserError(f"{path}: is there already, and holds no pairs of LR and HR; give another name")


@contextmanager
def _deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Defer what Ctrl-C and SIGTERM do until the yielded function is called, or until the end of the block.

    An exception that is raised within HDF5 keeps the file from being closed.
    """
    received: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    deferred = {number: handler for number, handler in handlers.items() if callable(handler)}

    def note(number: int, _) -> None:
        received.append(number)
        signal.signal(number, deferred[number])  # a second one acts as usual

    def handle() -> None:
        while received:
            number = received.pop()
            deferred[number](number, None)

    for number in deferred:
        signal.signal(number, note)
    try:
        yield handle
    finally:
        for number, handler in deferred.items():
            signal.signal(number, handler)
    handle()


class _HeldErrors(io.FileIO):
    """A file that keeps the first OSError for check(). HDF5 crashes when a write fails while it closes a file."""

    def __init__(self, path: str):
        super().__init__(path, "x+")
        self._error: OSError | None = None

    def write(self, data) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._error = self._error or error
        return size

    def truncate(self, size=None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size

    def check(self) -> None:
        if self._error is not None:
            raise self._error
