"""Patches out of a tensor that holds the bytes of a whole h5 file, or of a batch: many at once, by addresses.

On the host C does it (patches.c), without Python's lock; where there is no C compiler, and on other devices, a few tensor operations.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
import torch

from rdn_fast import native
from rdn_fast.devices import is_host, memory_format


class CutShort(Exception):
    """The file behind the bytes has been cut short, or could not be read."""


def crop(flat: torch.Tensor, start: np.ndarray, pitch: np.ndarray, out: torch.Tensor) -> None:
    """Copy n upright patches: flat uint8 [bytes] on the host -> out uint8 [n, size, size, 3].

    start, pitch: int64 [n], the address of a patch's first byte, and from row to row. Raises CutShort.
    """
    n, size = out.shape[:2]
    assert out.is_contiguous()
    if library := _library():
        _finish(library.crop(_at(flat), _longs(start), _longs(pitch), n, size, _at(out)))
        return
    source, patches = flat.numpy(), out.view(n, size, 3 * size).numpy()
    for k in range(n):
        patches[k] = np.ndarray((size, 3 * size), np.uint8, source, start[k], (pitch[k], 1))


def develop(flat: torch.Tensor, walk: torch.Tensor, out: torch.Tensor) -> None:
    """Turn and scale n patches: flat uint8 [bytes] -> out float32 [n, 3, size, size] in 0..1, all on one device.

    walk: int64 [3, n], as augment.walk makes it: pixel (y, x) of patch k lies at walk[0, k] + y * walk[1, k] + x * walk[2, k].
    Raises CutShort.
    """
    n, size = out.shape[0], out.shape[2]
    if is_host(flat.device) and (library := _library()):
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert walk.stride(1) == 1
        ways = (ctypes.c_void_p(walk.data_ptr() + 8 * walk.stride(0) * i) for i in range(3))
        _finish(library.develop(_at(flat), *ways, n, size, _at(out)))
        return
    way = torch.arange(size, device=flat.device)
    start, down, right = walk.view(3, n, 1, 1, 1)
    address = (
        start + down * way.view(size, 1, 1) + right * way.view(size, 1) + torch.arange(3, device=flat.device)
    )  # [n, size, size, 3]
    whole = torch.full(
        (), 255.0, device=flat.device
    )  # by a Python number CUDA would multiply with its rounded reciprocal
    torch.div(flat[address].permute(0, 3, 1, 2), whole, out=out)


def expect(flat: torch.Tensor, start: np.ndarray, pitch: np.ndarray, size: int) -> None:
    """Have the kernel read from the disk what crop() or develop() of these patches will need, many pages at a time."""
    if library := _library():
        library.expect(_at(flat), _longs(start), _longs(pitch), len(start), size)


def compiled() -> bool:
    """Whether there is a C library; it is compiled now if it was not before. Without it expect() does nothing."""
    return _library() is not None


def to_float(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [B, H, W, 3] on the host -> float32 [B, 3, H, W] in 0..1 on the device, in the device's memory format."""
    floats = images.to(device).permute(0, 3, 1, 2).float().div_(255)
    return floats.contiguous(memory_format=memory_format(device))


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return native.library(Path(__file__).with_name("patches.c"))
    except native.CannotBuild:
        return None


def _finish(ended: int) -> None:
    if ended == 1:
        raise CutShort
    if ended:
        raise MemoryError


def _at(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _longs(values: np.ndarray):
    assert values.dtype == np.int64
    assert values.flags.c_contiguous
    return values.ctypes.data_as(ctypes.c_void_p)
