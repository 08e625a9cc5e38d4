"""PairedH5 -> h5 in the reference's layout: groups lr and hr, contiguous uint8 [H, W, 3] RGB, written atomically."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py

from rdn_fast.data.pairs import Pair
from rdn_fast.errors import UserError
from rdn_fast.files import atomic_path


def write_pairs(
    path: str | Path,
    pairs: Iterable[Pair | None],
    flag: str = "--output-path",
    attributes: Mapping[str, str] | None = None,
) -> int:
    """Write pairs as an h5 file whose root has these `attributes`, aside and then renamed. Returns how many; None stands for one that was skipped."""
    n = 0
    with new_file(path, flag) as (file, check):
        file.attrs.update(attributes or {})
        groups = file.create_group("lr"), file.create_group("hr")
        for pair in pairs:
            if pair is not None:
                for group, image in zip(groups, (pair.lr, pair.hr), strict=True):
                    group.create_dataset(str(n), data=image)
                groups[1][str(n)].attrs["name"] = pair.name
                n += 1
            check()
    return n


@contextmanager
def new_file(path: str | Path, flag: str) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """Yield an empty h5 file to fill and check(), to be called between its images; put the file at `path` atomically.

    check() raises as soon as the disk is full or after Ctrl-C. After any error `path` is unchanged.
    Raises UserError, naming the `flag` that chooses the path, for every OSError of the block.
    """
    path = Path(path)
    with _interrupts_held() as interrupted:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another {flag}") from None
        try:
            with atomic_path(path) as temporary, _HeldErrors(temporary) as raw:

                def check() -> None:
                    interrupted()
                    raw.check()

                with h5py.File(raw, "w") as file:
                    yield file, check
                raw.check()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{path}: cannot be written ({reason}); free some space or choose another {flag}") from None


@contextmanager
def _interrupts_held() -> Iterator[Callable[[], None]]:
    """Ctrl-C waits for the next call of what is yielded, which raises KeyboardInterrupt: in the midst of HDF5 it would break the file's closing."""
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    came: list[int] = []

    def interrupted() -> None:
        if came:
            raise KeyboardInterrupt

    def hear(number, _) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one acts as usual

    if ours:
        signal.signal(signal.SIGINT, hear)
    try:
        yield interrupted
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupted()


class _HeldErrors(io.FileIO):
    """A file that keeps the first OSError of a write for check(): HDF5 crashes when a write fails while it closes."""

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
