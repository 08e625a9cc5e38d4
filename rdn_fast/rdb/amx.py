"""The dense block in bf16 on the matrix tiles of Intel's Xeons since 2023 (AMX): 512 products a cycle and core.

The kernels are in amx.c. All maps of a block share one padded channels-last buffer, and the forward pass saves only
that. Sums are accumulated in float32 and rounded once. Weights are packed anew at every call, since nothing tells
whether they have changed: optimizers change them without counting (profiling/LOG.md).
"""

from __future__ import annotations

import ctypes
from functools import partial
from pathlib import Path

import torch
from torch.autograd.function import once_differentiable

from rdn_fast import native
from rdn_fast.devices import has_matrix_tiles
from rdn_fast.rdb.in_c import Kernels, Scratch, Shape, in_crops
from rdn_fast.rdb.winograd_chunks import Chunks, slices

SOURCE = Path(__file__).with_name("amx.c")
PLAIN = "-DPLAIN_TILES"  # builds the tile operations in plain C, slow, to test the rest on any processor
_BF16 = torch.bfloat16


class TileKernels(Kernels):
    """amx.c with the processor's tiles."""

    @property
    def obstacle(self) -> str | None:
        if not has_matrix_tiles():
            return "needs a processor with AMX bf16 tiles (Intel Xeon since 2023)"
        return super().obstacle

    def _load(self) -> ctypes.CDLL:
        if (reason := self.obstacle) is not None:
            raise native.CannotBuild(reason)
        library = super()._load()
        if (tiles := library.rdn_tiles()) == 0:
            raise native.CannotBuild("needs a compiler that knows AMX (gcc 11, clang 12 or newer)")
        if tiles < 0:
            raise native.CannotBuild("needs a kernel that grants AMX tiles (Linux 5.16 or newer)")
        return library


kernels = TileKernels(SOURCE)
scratch = Scratch()
chunks = Chunks()


def missing() -> str | None:
    """Return why this impl cannot run here, or None when it can."""
    return kernels.missing


def rdb(x, conv_w, conv_b, fuse_w, fuse_b):
    """x: [B, G0, H, W], bf16 on a CPU -> y: [B, G0, H, W], channels_last. Impl.rdb checks: C gets mere pointers.

    Without gradients, large images are computed in crops, so memory does not grow with them.
    """
    w = [w.contiguous(memory_format=torch.channels_last) for w in conv_w]
    b, fuse_b = [b.contiguous() for b in conv_b], fuse_b.contiguous()
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, fuse_w, fuse_b, *w, *b)):
        return _Block.apply(x, fuse_w, fuse_b, *w, *b)
    u = _pack(Shape.of(x, w), w, fuse_w, backward=False)
    return in_crops(partial(_forward, w=w, b=b, fuse_b=fuse_b, u=u), x, len(w))


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fuse_w, fuse_b, *wb):
        w, b = wb[: len(wb) // 2], wb[len(wb) // 2 :]
        shape = Shape.of(x, w)
        f = torch.empty(kernels.count("rdn_maps", shape), dtype=_BF16)
        y = _forward(x, w, b, fuse_b, _pack(shape, w, fuse_w, backward=False), f)
        ctx.save_for_backward(f, fuse_w, *w)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        f, fuse_w, *w = ctx.saved_tensors
        gy = gy.permute(0, 2, 3, 1).contiguous()  # [B, H, W, G0]
        shape = Shape(*gy.shape, w[0].shape[0], len(w))
        u = _pack(shape, w, fuse_w, backward=True)
        du = scratch.get("du", kernels.count("rdn_gradients", shape))
        dx = torch.empty_like(gy)
        with _chunks(shape, backward=True) as size:
            for images in slices(shape.batch, size):
                work, add = _work(shape.part(images), backward=True), images.start > 0
                kernels.call(
                    "rdn_backward", shape.part(images), f, images.start, gy[images], u, dx[images], du, add, work
                )
        if not shape.batch:
            du.zero_()
        dw, db = [torch.empty_like(layer) for layer in w], [gy.new_empty(shape.g) for _ in w]
        dfuse_w, dfuse_b = gy.new_empty(fuse_w.shape), gy.new_empty(shape.g0)
        kernels.call("rdn_unpack", shape, du, dw, db, dfuse_w, dfuse_b)
        return dx.permute(0, 3, 1, 2), dfuse_w, dfuse_b, *dw, *db


def _forward(x, w, b, fuse_b, u, maps=None):
    """Return y: [B, G0, H, W]. Keep all feature maps in `maps`, of rdn_maps elements, if given."""
    shape = Shape.of(x, w)
    x = x.permute(0, 2, 3, 1).contiguous()  # [B, H, W, G0]
    y = torch.empty_like(x)
    with _chunks(shape, backward=False) as size:
        for images in slices(shape.batch, size):
            part, first = shape.part(images), images.start
            f = maps
            if maps is None:
                f, first = scratch.get("f", kernels.count("rdn_maps", part), dtype=_BF16), 0
            work = _work(part, backward=False)
            kernels.call("rdn_forward", part, x[images], f, first, u, b, fuse_b, y[images], work)
    return y.permute(0, 3, 1, 2)


def _work(shape: Shape, backward: bool):
    return scratch.get("work", kernels.count("rdn_workspace", shape, backward), dtype=_BF16)


def _chunks(shape: Shape, backward: bool):
    """Return a context manager that gives how many images to compute at a time, chosen by timing."""
    return chunks.timed((backward, *shape.key()), shape.batch, -(-shape.h // 4) * -(-shape.w // 4))


def _pack(shape: Shape, w, fuse_w, backward: bool):
    """Return all weights in the order in which the kernels read them."""
    u = scratch.get("u", kernels.count("rdn_packed", shape, backward), dtype=_BF16)
    kernels.call("rdn_pack_backward" if backward else "rdn_pack_forward", shape, w, fuse_w.contiguous(), u)
    return u
