"""The dense block by Winograd convolution F(4x4, 3x3), for float32 on CPUs: a quarter of the multiplications.

The kernels are in winograd.c. Each feature map is transformed once, however many layers read it. All maps of a block
share one channels-last buffer, and the forward pass saves only that: [f_0, ..., f_C], G0 + C*G channels. The local
residual is an identity matrix added to the weights of the 1x1 local feature fusion.
"""

from __future__ import annotations

import ctypes
import math
import threading
from pathlib import Path

import torch
from torch.autograd.function import once_differentiable

from rdn_fast import native
from rdn_fast.rdb.winograd_chunks import Chunks

SOURCE = Path(__file__).with_name("winograd.c")

_CROP = 192  # pixels: without gradients, larger images are computed in crops of this size


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("batch", "h", "w", "g0", "g", "layers")]


class Kernels:
    """winograd.c, compiled and loaded at first use.

    Without functools.cached_property: before Python 3.12 it holds one lock for all objects, and a process forked while
    another thread compiles would wait for it for ever.
    """

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        """Forget the library, or why there is none; the next use loads again."""
        self._library: ctypes.CDLL | None = None
        self._missing: str | None = None

    @property
    def library(self) -> ctypes.CDLL:
        """The loaded library. Raises native.CannotBuild."""
        if self._library is None:
            library = native.library(SOURCE)
            library.rdn_packed.restype = library.rdn_gradients.restype = library.rdn_workspace.restype = ctypes.c_long
            self._library = library
        return self._library

    @property
    def missing(self) -> str | None:
        """Why the library cannot be built, or None."""
        if self._library is None and self._missing is None:
            try:
                _ = self.library
            except native.CannotBuild as reason:
                self._missing = str(reason)
        return self._missing


class Scratch(threading.local):
    """Uninitialized float32 buffers, kept from call to call, for each thread: page faults cost as much as the work."""

    def __init__(self):
        self.buffers: dict[str, torch.Tensor] = {}

    def get(self, name: str, *size: int) -> torch.Tensor:
        """Return the buffer's first elements as a tensor of this size. Valid until the next call with this name."""
        count = math.prod(size)
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < count:
            with torch.inference_mode(False):  # an inference tensor could not be used outside inference mode
                buffer = self.buffers[name] = torch.empty(count, dtype=torch.float32)
        return buffer[:count].view(size)

    def clear(self) -> None:
        """Free this thread's buffers."""
        self.buffers.clear()


kernels = Kernels()
scratch = Scratch()
chunks = Chunks()


def missing() -> str | None:
    """Return why this impl cannot run here, or None when it can."""
    return kernels.missing


def rdb(x, conv_w, conv_b, fuse_w, fuse_b):
    """x: [B, G0, H, W], float32 on a CPU -> y: [B, G0, H, W], channels_last. Impl.rdb checks: C gets mere pointers.

    Without gradients, large images are computed in crops, so memory does not grow with them.
    """
    w = [w.contiguous(memory_format=torch.channels_last) for w in conv_w]
    b, fuse_b = [b.contiguous() for b in conv_b], fuse_b.contiguous()
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, fuse_w, fuse_b, *w, *b)):
        return _Block.apply(x, fuse_w, fuse_b, *w, *b)
    u = _pack(_shape(x, w), w, fuse_w, backward=False)
    height, width = x.shape[2:]
    if max(height, width) <= _CROP:
        return _forward(x, w, b, fuse_b, u)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    for top in range(0, height, _CROP):
        for left in range(0, width, _CROP):
            above, before = min(top, len(w)), min(left, len(w))  # the receptive field grows by one pixel per layer
            crop = x[:, :, top - above : top + _CROP + len(w), left - before : left + _CROP + len(w)]
            inner = _forward(crop, w, b, fuse_b, u)[:, :, above : above + _CROP, before : before + _CROP]
            y[:, :, top : top + _CROP, left : left + _CROP] = inner
    return y


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fuse_w, fuse_b, *wb):
        w, b = wb[: len(wb) // 2], wb[len(wb) // 2 :]
        f = _features(_shape(x, w))
        y = _forward(x, w, b, fuse_b, _pack(_shape(x, w), w, fuse_w, backward=False), f)
        ctx.save_for_backward(f, fuse_w, *w)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        f, fuse_w, *w = ctx.saved_tensors
        gy = gy.permute(0, 2, 3, 1).contiguous()  # [B, H, W, G0]
        g0, channels = fuse_w.shape[:2]
        shape = _Shape(*gy.shape[:3], g0, w[0].shape[0], len(w))
        u = _pack(shape, w, fuse_w, backward=True)
        du = scratch.get("du", kernels.library.rdn_gradients(ctypes.byref(shape)))  # in the transformed domain
        dx = torch.empty_like(gy)
        db = gy.new_empty(len(w), shape.g)
        dfuse_w, dfuse_b = gy.new_empty(g0, f.shape[-1]), gy.new_empty(g0)
        sums = du, db, dfuse_w, dfuse_b
        with _chunks(shape, backward=True) as parts:
            for images in parts:
                part = _part(shape, images)
                work = scratch.get("work", kernels.library.rdn_workspace(ctypes.byref(part), 1))
                accumulate = images.start > 0
                _call("rdn_backward", part, f[images], gy[images], u, dx[images], *sums, accumulate, work)
        if not shape.batch:
            for total in sums:
                total.zero_()
        dw = [torch.empty_like(layer) for layer in w]
        _call("rdn_unpack", shape, du, _pointers(dw))
        return dx.permute(0, 3, 1, 2), dfuse_w[:, :channels, None, None], dfuse_b, *dw, *db


def _forward(x, w, b, fuse_b, u, features=None):
    """Return y: [B, G0, H, W]. Write all feature maps to `features`, of _features, if given."""
    shape = _shape(x, w)
    x = x.permute(0, 2, 3, 1)  # [B, H, W, G0]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    with _chunks(shape, backward=False) as parts:
        for images in parts:
            part = _part(shape, images)
            f = _features(part, scratch.get) if features is None else features[images]
            f[..., : shape.g0] = x[images]
            work = scratch.get("work", kernels.library.rdn_workspace(ctypes.byref(part), 0))
            _call("rdn_forward", part, f, u, _pointers(b), fuse_b, y[images], work)
    return y.permute(0, 3, 1, 2)


def _features(shape: _Shape, scratch_get=None):
    """Return an uninitialized buffer for all maps of a block: [B, H, W, G0 + C*G], rounded up to 16 channels."""
    size = shape.batch, shape.h, shape.w, -(-(shape.g0 + shape.layers * shape.g) // 16) * 16
    return scratch_get("f", *size) if scratch_get else torch.empty(size, dtype=torch.float32)


def _shape(x, w) -> _Shape:
    batch, g0, height, width = x.shape
    return _Shape(batch, height, width, g0, w[0].shape[0], len(w))


def _chunks(shape: _Shape, backward: bool):
    """Return a context manager that gives slices of the batch, chosen by timing."""
    kind = (backward, *(getattr(shape, name) for name, _ in shape._fields_))
    return chunks.timed(kind, shape.batch, -(-shape.h // 4) * -(-shape.w // 4))


def _part(shape: _Shape, images: slice) -> _Shape:
    return _Shape(images.stop - images.start, shape.h, shape.w, shape.g0, shape.g, shape.layers)


def _pack(shape: _Shape, w, fuse_w, backward: bool):
    """Return all weights, those of the 3x3 convolutions transformed, in the order in which the kernels read them."""
    u = scratch.get("u", kernels.library.rdn_packed(ctypes.byref(shape), backward))
    _call("rdn_pack_backward" if backward else "rdn_pack_forward", shape, _pointers(w), fuse_w.contiguous(), u)
    return u


def _pointers(tensors):
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


def _call(name: str, shape: _Shape, *arguments) -> None:
    getattr(kernels.library, name)(ctypes.byref(shape), *map(_argument, arguments))


def _argument(value):
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int(value) if isinstance(value, int) else value
