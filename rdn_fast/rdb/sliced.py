"""All feature maps of a block in one buffer: each layer writes its own channels, and nothing is concatenated.

The backward pass is a dense block in reverse. Let d_i be the gradient before layer i's ReLU. The gradient of f_s is

    (fusion's gradient of f_s) + sum over layers i that read f_s of conv_transpose(d_i, channels of f_s in W_i)

Computed for s = C..0 with all d_i in one buffer, the last layer's first, each step is one convolution of the d_i known
so far with gathered weights. Saved for backward is only the buffer of G0 + C*G channels; autograd would save every
concatenation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

aten = torch.ops.aten


def rdb(x, conv_w, conv_b, fuse_w, fuse_b):
    """x: [B, G0, H, W] -> y: [B, G0, H, W] in x's memory format."""
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
            y = F.conv2d(f[:, :seen], weight, bias, padding=1)
            torch.clamp_min(y, 0, out=f[:, seen:new])  # ReLU and copy in one pass
            seen = new
        ctx.save_for_backward(f, fuse_w, *w)
        return F.conv2d(f, fuse_w, fuse_b).add_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        f, fuse_w, *w = ctx.saved_tensors
        g0, g, layers = fuse_w.shape[0], w[0].shape[0], len(w)
        e = F.conv2d(gy, fuse_w.transpose(0, 1))  # the fusion's gradient of f: [B, G0 + C*G, H, W]
        d = _buffer(f, layers * g)  # the last layer's gradient first
        dw, db = [None] * layers, [None] * layers
        for s in range(layers, 0, -1):  # f_s, which layer s - 1 of w wrote
            begin, done = g0 + (s - 1) * g, (layers - s) * g
            grad = e[:, begin : begin + g]
            if done:
                grad = F.conv2d(d[:, :done], _reversed_weights(w[s:], begin, g), padding=1).add_(grad)
            d_s = d[:, done : done + g]
            aten.threshold_backward.grad_input(grad, f[:, begin : begin + g], 0, grad_input=d_s)
            dw[s - 1], db[s - 1] = _parameter_gradients(d_s, f[:, :begin], w[s - 1])
        dx = F.conv2d(d, _reversed_weights(w, 0, g0), padding=1).add_(e[:, :g0]).add_(gy)
        dfuse_w, dfuse_b = _parameter_gradients(gy, f, fuse_w)
        return dx, dfuse_w, dfuse_b, *dw, *db


def _buffer(like, channels):
    """Return uninitialized memory [B, channels, H, W] in the memory format of `like`."""
    batch, _, height, width = like.shape
    channels_last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    size = batch, channels, height, width
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _reversed_weights(w, begin, count):
    """Return the weights of the transposed convolutions from the layers of w to `count` channels from `begin` on.

    Shape [count, len(w)*G, 3, 3], the last layer first.
    """
    return torch.cat([weight[:, begin : begin + count] for weight in reversed(w)]).transpose(0, 1).flip(2, 3)


def _parameter_gradients(d, x, w):
    """Return the gradients of a convolution's weights and bias, given its output's gradient d and its input x."""
    pad = [w.shape[2] // 2] * 2
    mask = [False, True, True]  # input, weights, bias
    _, dw, db = aten.convolution_backward(d, x, w, [w.shape[0]], [1, 1], pad, [1, 1], False, [0, 0], 1, mask)
    return dw, db
