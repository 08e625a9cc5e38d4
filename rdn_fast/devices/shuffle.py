"""Pixel shuffle in the memory format that the next convolution reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def pixel_shuffle(x: torch.Tensor, factor: int, dtype: torch.dtype) -> torch.Tensor:
    """Return F.pixel_shuffle(x, factor) in dtype, channels_last where x is: [B, r*r*C, H, W] -> [B, C, r*H, r*W].

    On CUDA torch shuffles to contiguous, casts, and moves the result to channels_last for the convolution, and its
    input once more for the weights' gradient: four passes over the largest map of a step. There it is one here, and in
    backward one instead of two. CPUs have a shuffle that keeps channels_last, and is faster.
    """
    if _one_pass(x):
        return _ChannelsLastShuffle.apply(x, factor, dtype)
    return F.pixel_shuffle(x, factor).to(dtype)


def _one_pass(x: torch.Tensor) -> bool:
    return x.device.type == "cuda" and x.is_contiguous(memory_format=torch.channels_last)


class _ChannelsLastShuffle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor, dtype):
        ctx.factor, ctx.dtype = factor, x.dtype
        b, channels, h, w = x.shape
        c = channels // factor**2
        parts = x.permute(0, 2, 3, 1).reshape(b, h, w, c, factor, factor).permute(0, 1, 4, 2, 5, 3)
        y = torch.empty(parts.shape, dtype=dtype, device=x.device).copy_(parts)  # [b, h, factor, w, factor, c]
        return y.view(b, h * factor, w * factor, c).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        factor = ctx.factor
        b, c, height, width = gradient.shape
        h, w = height // factor, width // factor
        parts = gradient.permute(0, 2, 3, 1).reshape(b, h, factor, w, factor, c).permute(0, 1, 3, 5, 2, 4)
        x = torch.empty(parts.shape, dtype=ctx.dtype, device=gradient.device).copy_(
            parts
        )  # [b, h, w, c, factor, factor]
        return x.view(b, h, w, c * factor**2).permute(0, 3, 1, 2), None, None
