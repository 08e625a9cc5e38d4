"""What the implementations in C share: the compiled library, scratch memory, crops of pictures, how they compute."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.autograd.function import once_differentiable

from rdn_fast import native
from rdn_fast.rdb.winograd_chunks import Chunks, slices

CROP = 272  # pixels: without gradients, larger images are computed in crops of this size; pictures' windows are smaller


class Shape(ctypes.Structure):
    """A block on a batch of images, as the C files have it."""

    _fields_ = [(name, ctypes.c_long) for name in ("batch", "h", "w", "g0", "g", "layers")]

    @classmethod
    def of(cls, x, b) -> Shape:
        """x: [B, G0, H, W], b: the layers' biases."""
        batch, g0, height, width = x.shape
        return cls(batch, height, width, g0, len(b[0]), len(b))

    def part(self, images: slice) -> Shape:
        """Return the shape of some of the batch's images."""
        return Shape(images.stop - images.start, self.h, self.w, self.g0, self.g, self.layers)

    def key(self) -> tuple[int, ...]:
        """Return all numbers."""
        return tuple(getattr(self, name) for name, _ in self._fields_)

    @property
    def tiles(self) -> int:
        """4x4 tiles of an image."""
        return -(-self.h // 4) * -(-self.w // 4)


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


class BlockInC:
    """A dense block computed in C, in one dtype. Both C files have functions of the same names.

    All maps of a block share one channels-last buffer, and the forward pass saves only that. rdb() packs the weights
    anew at every call, since nothing tells whether they have changed: optimizers change them without counting
    (profiling/LOG.md). frozen() is for weights that nothing changes.
    """

    def __init__(self, kernels: Kernels, dtype: torch.dtype, group: int = 0):
        """`group`: 4x4 tiles, at least, whose weights' gradients are summed in one pass over these."""
        self.kernels, self.dtype, self.group = kernels, dtype, group
        self.scratch, self.chunks = Scratch(), Chunks()

    def missing(self) -> str | None:
        """Return why this impl cannot run here, or None when it can."""
        return self.kernels.missing

    def rdb(self, x, conv_w, conv_b, fuse_w, fuse_b):
        """x: [B, G0, H, W] -> y: [B, G0, H, W], channels_last. Impl.rdb checks all arguments: C gets mere pointers.

        Without gradients, large images are computed in crops, so memory does not grow with them.
        """
        w = [w.contiguous(memory_format=torch.channels_last) for w in conv_w]
        b, fuse_b = [b.contiguous() for b in conv_b], fuse_b.contiguous()
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, fuse_w, fuse_b, *w, *b)):
            return _Block.apply(self, x, fuse_w, fuse_b, *w, *b)
        u = self.pack(Shape.of(x, b), w, fuse_w, backward=False)
        return in_crops(partial(self.forward, u=u, b=b, fuse_b=fuse_b), x, len(b))

    def frozen(self, conv_w, conv_b, fuse_w, fuse_b) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return rdb() with these weights, packed once, as a function of x, without gradients."""
        w = [w.contiguous(memory_format=torch.channels_last) for w in conv_w]
        b, fuse_b = [b.clone(memory_format=torch.contiguous_format) for b in conv_b], fuse_b.clone()
        u = self.pack(Shape(1, 1, 1, len(fuse_b), len(b[0]), len(b)), w, fuse_w, backward=False).clone()
        return lambda x: in_crops(partial(self.forward, u=u, b=b, fuse_b=fuse_b), x, len(b))

    def pack(self, shape: Shape, w, fuse_w, backward: bool):
        """Return all weights in the order in which the kernels read them."""
        u = self.scratch.get("u", self.kernels.count("rdn_packed", shape, backward), dtype=self.dtype)
        self.kernels.call("rdn_pack_backward" if backward else "rdn_pack_forward", shape, w, fuse_w.contiguous(), u)
        return u

    def forward(self, x, u, b, fuse_b, maps=None):
        """Return y: [B, G0, H, W]. Keep all feature maps in `maps`, of rdn_maps elements, if given."""
        shape = Shape.of(x, b)
        x = x.permute(0, 2, 3, 1).contiguous()  # [B, H, W, G0]
        y = torch.empty_like(x)
        with self._timed(shape, backward=False) as size:
            for images in slices(shape.batch, size):
                part, f, first = shape.part(images), maps, images.start
                if maps is None:
                    f, first = self.scratch.get("f", self.kernels.count("rdn_maps", part), dtype=self.dtype), 0
                work = self._work(part, 0)
                self.kernels.call("rdn_forward", part, x[images], f, first, u, b, fuse_b, y[images], work)
        return y.permute(0, 3, 1, 2)

    def backward(self, gy, f, w, fuse_w):
        """gy: [B, G0, H, W], f: the maps of the forward pass -> gradients of x, fuse_w, fuse_b, all w, all b."""
        gy = gy.permute(0, 2, 3, 1).contiguous()  # [B, H, W, G0]
        shape = Shape(*gy.shape, w[0].shape[0], len(w))
        u = self.pack(shape, w, fuse_w, backward=True)
        du = self.scratch.get("du", self.kernels.count("rdn_gradients", shape))
        dx = torch.empty_like(gy)
        with self._timed(shape, backward=True) as size:
            for images in slices(shape.batch, max(size, -(-self.group // shape.tiles))):
                part, first = shape.part(images), images.start
                arguments = f, first, gy[images], u, dx[images], du, first > 0, self._work(part, size)
                self.kernels.call("rdn_backward", part, size, *arguments)
        if not shape.batch:
            du.zero_()
        dw, db = [torch.empty_like(layer) for layer in w], [gy.new_empty(shape.g) for _ in w]
        dfuse_w, dfuse_b = gy.new_empty(fuse_w.shape), gy.new_empty(shape.g0)
        self.kernels.call("rdn_unpack", shape, du, dw, db, dfuse_w, dfuse_b)
        return dx.permute(0, 3, 1, 2), dfuse_w, dfuse_b, *dw, *db

    def _work(self, shape: Shape, images: int):
        """Return scratch memory for a backward pass of `images` at a time, or for a forward pass (0)."""
        return self.scratch.get("work", self.kernels.count("rdn_workspace", shape, images), dtype=self.dtype)

    def _timed(self, shape: Shape, backward: bool):
        """Return a context manager that gives how many images to compute at a time, chosen by timing."""
        return self.chunks.timed((backward, *shape.key()), shape.batch, shape.tiles)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, block: BlockInC, x, fuse_w, fuse_b, *wb):
        w, b = wb[: len(wb) // 2], wb[len(wb) // 2 :]
        shape = Shape.of(x, b)
        f = torch.empty(block.kernels.count("rdn_maps", shape), dtype=block.dtype)
        y = block.forward(x, block.pack(shape, w, fuse_w, backward=False), b, fuse_b, f)
        ctx.block = block
        ctx.save_for_backward(f, fuse_w, *w)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        f, fuse_w, *w = ctx.saved_tensors
        return None, *ctx.block.backward(gy, f, w, fuse_w)
