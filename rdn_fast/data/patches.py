"""Cut, orient and scale many patches at once out of a tensor that holds the bytes of a whole h5 file, or of a batch.

On the host patches.c does it without Python's lock. Other devices use tensor operations, as do hosts without a C
compiler.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
import torch

from rdn_fast import native
from rdn_fast.data import augment


class CutShort(Exception):
    """The mapped file was truncated, or could not be read."""


def crop(flat: torch.Tensor, start: np.ndarray, pitch: np.ndarray, out: torch.Tensor) -> None:
    """Copy n patches as they lie: flat uint8 [bytes] on the host -> out uint8 [n, size, size, 3].

    start, pitch: int64 [n], the address of a patch's first byte, and the bytes from row to row. Raises CutShort.
    """
    n, size = out.shape[:2]
    assert out.is_contiguous()
    if library := _library():
        _check(library.crop(flat.data_ptr(), _address(start), _address(pitch), n, size, out.data_ptr()))
        return
    source, patches = flat.numpy(), out.view(n, size, 3 * size).numpy()
    for k in range(n):
        patches[k] = np.ndarray((size, 3 * size), np.uint8, source, start[k], (pitch[k], 1))


def gather_to_float(
    flat: torch.Tensor, start: np.ndarray, pitch: np.ndarray, orientation: np.ndarray, out: torch.Tensor
) -> None:
    """Cut, orient and scale n patches on the host: flat uint8 [bytes] -> out float32 [n, 3, size, size] in 0..1.

    start, pitch: as for crop(). orientation: uint8 [n], as in augment.Plan. out: channels_last. Raises CutShort.
    """
    n, size = out.shape[0], out.shape[2]
    assert out.is_contiguous(memory_format=torch.channels_last)
    if library := _library():
        where = _address(start), _address(pitch), _address(orientation, np.uint8)
        _check(library.gather_to_float(flat.data_ptr(), *where, n, size, out.data_ptr()))
        return
    gather_strided_to_float(flat, torch.from_numpy(augment.strides(start, pitch, orientation, size)), out)


def gather_strided_to_float(flat: torch.Tensor, strides: torch.Tensor, out: torch.Tensor) -> None:
    """Do the same on any device by tensor operations; out may have any memory format.

    strides: int64 [3, n] as augment.strides() makes them, on the device of flat and out.
    """
    n, size = out.shape[0], out.shape[2]
    position = torch.arange(size, device=flat.device)
    start, row, column = strides.view(3, n, 1, 1, 1)
    channel = torch.arange(3, device=flat.device)
    address = start + row * position.view(size, 1, 1) + column * position.view(size, 1) + channel  # [n, size, size, 3]
    divisor = torch.full((), 255.0, device=flat.device)  # CUDA multiplies by a Python number's rounded reciprocal
    torch.div(flat[address].permute(0, 3, 1, 2), divisor, out=out)


def read_ahead(flat: torch.Tensor, start: np.ndarray, pitch: np.ndarray, size: int) -> None:
    """Make the kernel read from the disk what crop() or gather_to_float() of these patches needs, many pages at a time.

    Does nothing where there is no C library.
    """
    if library := _library():
        library.read_ahead(flat.data_ptr(), _address(start), _address(pitch), len(start), size)


def compiled() -> bool:
    """Return whether there is a C library. Compiles it at the first call."""
    return _library() is not None


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = native.library(Path(__file__).with_name("patches.c"))
    except native.CannotBuild:
        return None
    pointer, long = ctypes.c_void_p, ctypes.c_long
    library.crop.argtypes = pointer, pointer, pointer, long, long, pointer
    library.gather_to_float.argtypes = pointer, pointer, pointer, pointer, long, long, pointer
    library.read_ahead.argtypes = pointer, pointer, pointer, long, long
    return library


def _check(status: int) -> None:
    if status == 1:
        raise CutShort
    if status:
        raise MemoryError


def _address(values: np.ndarray, dtype=np.int64) -> int:
    assert values.dtype == dtype
    assert values.flags.c_contiguous
    return values.ctypes.data
