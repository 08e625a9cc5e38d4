"""Read the heaps of a file's names with little memory: HDF5 walks the free list of a damaged one in a circle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

_ENOUGH = 256 << 20  # bytes: names take 16 or so each


def read_heaps(file: h5py.File, groups: tuple[str, ...]) -> None:
    """Make HDF5 read the names of the root and of these groups, which it then keeps.

    Raises what h5py raises, anything, where a damaged heap would take all memory of the machine.
    """
    with _little_memory():
        for group in map(str.encode, groups):
            if file.id.links.exists(group) and isinstance(found := h5py.h5o.open(file.id, group), h5py.h5g.GroupID):
                found.links.exists(b"0")


@contextmanager
def _little_memory() -> Iterator[None]:
    """Bound the memory that this process can get in the block, where the system can do that."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        known = [] if soft == resource.RLIM_INFINITY else [soft]
        resource.setrlimit(resource.RLIMIT_AS, (min([used + _ENOUGH, *known]), hard))
    except (ImportError, OSError):  # not Linux
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
