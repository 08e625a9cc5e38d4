"""What the implementations in C share: the compiled library, scratch memory, and crops of pictures."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from rdn_fast import native

CROP = 192  # pixels: without gradients, larger images are computed in crops of this size


class Shape(ctypes.Structure):
    """A block on a batch of images, as the C files have it."""

    _fields_ = [(name, ctypes.c_long) for name in ("batch", "h", "w", "g0", "g", "layers")]

    @classmethod
    def of(cls, x, w) -> Shape:
        """x: [B, G0, H, W], w: the layers' weights."""
        batch, g0, height, width = x.shape
        return cls(batch, height, width, g0, w[0].shape[0], len(w))

    def part(self, images: slice) -> Shape:
        """Return the shape of some of the batch's images."""
        return Shape(images.stop - images.start, self.h, self.w, self.g0, self.g, self.layers)

    def key(self) -> tuple[int, ...]:
        """Return all numbers."""
        return tuple(getattr(self, name) for name, _ in self._fields_)


class Kernels:
    """A C file, compiled and loaded at first use.

    Without functools.cached_property: before Python 3.12 it holds one lock for all objects, and a process forked while
    another thread compiles would wait for it for ever.
    """

    def __init__(self, source: Path, *flags: str):
        """`flags`: further ones for the compiler."""
        self._source, self._flags = source, flags
        self.clear()

    def clear(self) -> None:
        """Forget the library, or why there is none; the next use loads again."""
        self._library: ctypes.CDLL | None = None
        self._missing: str | None = None

    @property
    def obstacle(self) -> str | None:
        """Why the library cannot be built here, as far as that can be told without building it; or None."""
        return None if native.compiler() else native.NO_COMPILER

    @property
    def library(self) -> ctypes.CDLL:
        """The loaded library. Raises native.CannotBuild."""
        if self._library is None:
            self._library = self._load()
        return self._library

    def _load(self) -> ctypes.CDLL:
        return native.library(self._source, *self._flags)

    @property
    def missing(self) -> str | None:
        """Why the library cannot be built, or None."""
        if self._library is None and self._missing is None:
            try:
                _ = self.library
            except native.CannotBuild as reason:
                self._missing = str(reason)
        return self._missing

    def call(self, name: str, shape: Shape, *arguments) -> None:
        """Call a function without result. Tensors and lists of tensors are passed as pointers, an int as a C long."""
        getattr(self.library, name)(ctypes.byref(shape), *map(_argument, arguments))

    def count(self, name: str, shape: Shape, *arguments: int) -> int:
        """Return the long that a function returns."""
        function = getattr(self.library, name)
        function.restype = ctypes.c_long
        return function(ctypes.byref(shape), *map(_argument, arguments))


def _argument(value):
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, (list, tuple)):
        return (ctypes.c_void_p * len(value))(*(t.data_ptr() for t in value))
    return ctypes.c_long(value)


class Scratch(threading.local):
    """Uninitialized buffers, kept from call to call, for each thread: page faults cost as much as the work."""

    def __init__(self):
        self.buffers: dict[str, torch.Tensor] = {}

    def get(self, name: str, *size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return the buffer's first elements as a tensor of this size. Valid until the next call with this name."""
        count = math.prod(size)
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < count:
            with torch.inference_mode(False):  # an inference tensor could not be used outside inference mode
                buffer = self.buffers[name] = torch.empty(count, dtype=dtype)
        return buffer[:count].view(size)

    def clear(self) -> None:
        """Free this thread's buffers."""
        self.buffers.clear()


def in_crops(forward: Callable[[torch.Tensor], torch.Tensor], x, layers: int):
    """Return forward(x), [B, G0, H, W], channels_last, computed in crops of CROP pixels if the images are larger."""
    side, (height, width) = CROP, x.shape[2:]
    if max(height, width) <= side:
        return forward(x)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    for top in range(0, height, side):
        for left in range(0, width, side):
            above, before = min(top, layers), min(left, layers)  # the receptive field grows by one pixel per layer
            crop = x[:, :, top - above : top + side + layers, left - before : left + side + layers]
            inner = forward(crop)[:, :, above : above + side, before : before + side]
            y[:, :, top : top + side, left : left + side] = inner
    return y
