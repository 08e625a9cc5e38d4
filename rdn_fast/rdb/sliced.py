"""One buffer of all maps per block: each layer writes its slice, and nothing is concatenated.

Backward is a dense block in reverse. With d_i the gradient before layer i's ReLU, map f_s receives

    grad f_s = (fusion's part)_s + sum over i > s of convT(d_i, W_i[:, block s])

so walking s = C..0 with the d's in one buffer, the newest first, each step is one convolution of all d's so far with
gathered weights. Kept for backward: the buffer, G0 + C*G channels, where autograd would keep every concatenation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

aten = torch.ops.aten


def rdb(x, conv_w, conv_b, fuse_w, fuse_b, *, out=None):
    """x: [B, G0, H, W] -> y in x's memory format; `out` is ignored."""
    return _Block.apply(x, fuse_w, fuse_b, *conv_w, *conv_b)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fuse_w, fuse_b, *wb):
        w, b = wb[: len(wb) // 2], wb[len(wb) // 2 :]
        f = _buffer(x, fuse_w.shape[1])  # [B, G0 + C*G, H, W]
        seen = x.shape[1]
        f[:, :seen] = x
        for weight, bias in zip(w, b, strict=True):
            new = seen + weight.shape[0]
            torch.clamp_min(
                F.conv2d(f[:, :seen], weight, bias, padding=1), 0, out=f[:, seen:new]
            )  # ReLU and copy in one pass
            seen = new
        ctx.save_for_backward(f, fuse_w, *w)
        return F.conv2d(f, fuse_w, fuse_b).add_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        f, fuse_w, *w = ctx.saved_tensors
        g0, g, layers = fuse_w.shape[0], w[0].shape[0], len(w)
        e = F.conv2d(gy, fuse_w.transpose(0, 1))  # the fusion's part: [B, G0 + C*G, H, W]
        d = _buffer(f, layers * g)  # newest first
        dw, db = [None] * layers, [None] * layers
        for s in range(layers, 0, -1):  # the map that layer s - 1 wrote
            begin, done = g0 + (s - 1) * g, (layers - s) * g
            grad = e[:, begin : begin + g]
            if done:
                grad = F.conv2d(d[:, :done], _gathered(w[s:], begin, g), padding=1).add_(grad)
            own = d[:, done : done + g]
            aten.threshold_backward.grad_input(grad, f[:, begin : begin + g], 0, grad_input=own)
            dw[s - 1], db[s - 1] = _of_parameters(own, f[:, :begin], w[s - 1])
        dx = F.conv2d(d, _gathered(w, 0, g0), padding=1).add_(e[:, :g0]).add_(gy)
        dfuse_w, dfuse_b = _of_parameters(gy, f, fuse_w)
        return dx, dfuse_w, dfuse_b, *dw, *db


def _buffer(like, channels):
    batch, _, height, width = like.shape
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return torch.empty(
        batch,
        channels,
        height,
        width,
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


def _gathered(w, begin, count):
    """What maps `count` channels from `begin` give to the layers of w, turned round: [count, len(w)*G, 3, 3], the newest layer first."""
    return torch.cat([weight[:, begin : begin + count] for weight in reversed(w)]).transpose(0, 1).flip(2, 3)


def _of_parameters(d, x, w):
    """Gradients of a convolution's weights and bias."""
    pad = [w.shape[2] // 2] * 2
    _, dw, db = aten.convolution_backward(
        d, x, w, [w.shape[0]], [1, 1], pad, [1, 1], False, [0, 0], 1, [False, True, True]
    )
    return dw, db
