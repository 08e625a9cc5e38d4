"""Losses of a step, as sums over a batch's pixels and channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

_EPSILON = 1e-3  # as in LapSRN (Lai et al., CVPR 2017), for values in 0..1


def weighted_loss(y: torch.Tensor, hr: torch.Tensor, weight: torch.Tensor | float, kind: str = "l1") -> torch.Tensor:
    """Return the sum of errors times `weight`, float32 []. y: any dtype, hr: float32, both [b, 3, h, w].

    weight: of all patches, or float32 [b], of each. kind: of error; "l1": |y - hr|; "mse": (y - hr)^2; "charbonnier":
    sqrt((y - hr)^2 + 1e-6).
    """
    error = _ERRORS[kind]
    if isinstance(weight, torch.Tensor) and weight.dim():
        return (error(y.float(), hr, reduction="none").sum((1, 2, 3)) * weight).sum()
    return error(y.float(), hr, reduction="sum") * weight


def _charbonnier(y: torch.Tensor, hr: torch.Tensor, reduction: str) -> torch.Tensor:
    errors = ((y - hr).square() + _EPSILON**2).sqrt()
    return errors.sum() if reduction == "sum" else errors


_ERRORS = {"l1": F.l1_loss, "mse": F.mse_loss, "charbonnier": _charbonnier}
