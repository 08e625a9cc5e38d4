"""The dense block by Winograd convolution F(4x4, 3x3), for float32 on CPUs: a quarter of the multiplications.

The kernels are in winograd.c. Each feature map is transformed once, however many layers read it. All maps of a block
share one channels-last buffer, and the forward pass saves only that: [f_0, ..., f_C], G0 + C*G channels. The local
residual is an identity matrix added to the weights of the 1x1 local feature fusion.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch.autograd.function import once_differentiable

from rdn_fast.rdb.in_c import Kernels, Scratch, Shape, in_crops
from rdn_fast.rdb.winograd_chunks import Chunks, slices

kernels = Kernels(Path(__file__).with_name("winograd.c"))
scratch = Scratch()
chunks = Chunks()

GROUP = 256  # tiles, at least, whose weights' gradients are summed in one pass over these


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
    u = _pack(Shape.of(x, w), w, fuse_w, backward=False)
    return in_crops(partial(_forward, w=w, b=b, fuse_b=fuse_b, u=u), x, len(w))


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fuse_w, fuse_b, *wb):
        w, b = wb[: len(wb) // 2], wb[len(wb) // 2 :]
        f = _features(Shape.of(x, w))
        y = _forward(x, w, b, fuse_b, _pack(Shape.of(x, w), w, fuse_w, backward=False), f)
        ctx.save_for_backward(f, fuse_w, *w)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        f, fuse_w, *w = ctx.saved_tensors
        gy = gy.permute(0, 2, 3, 1).contiguous()  # [B, H, W, G0]
        g0, channels = fuse_w.shape[:2]
        shape = Shape(*gy.shape[:3], g0, w[0].shape[0], len(w))
        u = _pack(shape, w, fuse_w, backward=True)
        du = scratch.get("du", kernels.count("rdn_gradients", shape))  # in the transformed domain
        dx = torch.empty_like(gy)
        db = gy.new_empty(len(w), shape.g)
        dfuse_w, dfuse_b = gy.new_empty(g0, f.shape[-1]), gy.new_empty(g0)
        sums = du, db, dfuse_w, dfuse_b
        with _chunks(shape, backward=True) as size:
            for images in slices(shape.batch, max(size, -(-GROUP // _tiles(shape)))):
                part = shape.part(images)
                work = scratch.get("work", kernels.count("rdn_workspace", part, size))
                accumulate = images.start > 0
                kernels.call("rdn_backward", part, size, f[images], gy[images], u, dx[images], *sums, accumulate, work)
        if not shape.batch:
            for total in sums:
                total.zero_()
        dw = [torch.empty_like(layer) for layer in w]
        kernels.call("rdn_unpack", shape, du, dw)
        return dx.permute(0, 3, 1, 2), dfuse_w[:, :channels, None, None], dfuse_b, *dw, *db


def _forward(x, w, b, fuse_b, u, features=None):
    """Return y: [B, G0, H, W]. Write all feature maps to `features`, of _features, if given."""
    shape = Shape.of(x, w)
    x = x.permute(0, 2, 3, 1)  # [B, H, W, G0]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    with _chunks(shape, backward=False) as size:
        for images in slices(shape.batch, size):
            part = shape.part(images)
            f = _features(part, scratch.get) if features is None else features[images]
            f[..., : shape.g0] = x[images]
            work = scratch.get("work", kernels.count("rdn_workspace", part, 0))
            kernels.call("rdn_forward", part, f, u, b, fuse_b, y[images], work)
    return y.permute(0, 3, 1, 2)


def _features(shape: Shape, scratch_get=None):
    """Return an uninitialized buffer for all maps of a block: [B, H, W, G0 + C*G], rounded up to 16 channels."""
    size = shape.batch, shape.h, shape.w, -(-(shape.g0 + shape.layers * shape.g) // 16) * 16
    return scratch_get("f", *size) if scratch_get else torch.empty(size, dtype=torch.float32)


def _chunks(shape: Shape, backward: bool):
    """Return a context manager that gives how many images to compute at a time, chosen by timing."""
    return chunks.timed((backward, *shape.key()), shape.batch, _tiles(shape))


def _tiles(shape: Shape) -> int:
    """Return the tiles of an image."""
    return -(-shape.h // 4) * -(-shape.w // 4)


def _pack(shape: Shape, w, fuse_w, backward: bool):
    """Return all weights, those of the 3x3 convolutions transformed, in the order in which the kernels read them."""
    u = scratch.get("u", kernels.count("rdn_packed", shape, backward))
    kernels.call("rdn_pack_backward" if backward else "rdn_pack_forward", shape, w, fuse_w.contiguous(), u)
    return u
