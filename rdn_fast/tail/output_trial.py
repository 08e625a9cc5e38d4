"""`python -m rdn_fast.tail.output_trial DEVICE`: launch the kernels of output_conv there, and check their results.

Ends as rdb/triton_trial.py does; rdb/trial.py runs it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F

from rdn_fast.devices import synchronize
from rdn_fast.errors import what_failed
from rdn_fast.rdb.trial import on_its_device
from rdn_fast.tail.output_conv import LOW, output_conv

SHAPE = 2, 64, 17, 30  # B, C, H, W: the reference's channels, and sides that no tile divides
FAR = 2  # roundings (eps) from float64, as 2-norms: of float32, and of the gradient of x to its own dtype
SUMS = 32  # float32's of so many pixels round that many times as far
NAMES = "the output", "the gradient of x", "the gradient of weights", "the gradient of biases"


def flaw(device: torch.device, conv: Callable, dtype: torch.dtype, shape: tuple = SHAPE) -> str | None:
    """Return what is wrong with conv(x, weight, bias), x being of `dtype`, forward or backward, or None."""
    generator = torch.Generator().manual_seed(0)
    batch, channels, height, width = shape
    sizes = shape, (3, channels, 3, 3), (3,), (batch, 3, height, width)
    x, weight, bias, upstream = (torch.randn(size, generator=generator) for size in sizes)
    given = x.to(dtype), weight * (9 * channels) ** -0.5, bias
    oracle = _solve(_plain, [tensor.double() for tensor in given], upstream.double())
    try:
        found = _solve(conv, [tensor.to(device) for tensor in given], upstream.to(device))
        synchronize(device)
    except Exception as error:  # whatever a compiler, a driver or a kernel raises
        return f"{type(error).__name__}: {what_failed(error)}"
    for name, result, right in zip(NAMES, found, oracle, strict=True):
        error = ((result.cpu().double() - right).norm() / right.norm()).item()
        rounding = FAR if result.dtype == dtype else FAR * SUMS
        if not error <= rounding * torch.finfo(result.dtype).eps:  # NaN is none
            return f"{name} is wrong by {error:.2g}"
    return None


def _plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, weight, bias, padding=1)


def _solve(conv: Callable, given: list[torch.Tensor], upstream: torch.Tensor) -> list[torch.Tensor]:
    """Return the output and the gradients of x, weight and bias."""
    leaves = [tensor.requires_grad_() for tensor in given]
    y = conv(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]


def main() -> int:
    return on_its_device(lambda device: next(filter(None, (flaw(device, output_conv, dtype) for dtype in LOW)), None))


if __name__ == "__main__":
    sys.exit(main())
