"""Errors of npu_conv's compiled kernels, which the emulator executes, against float64, in roundings of the dtype.

A rounding is eps / 2 of the largest value of what is compared. A race between pipes, cores or programs, an address
outside of its buffer or memory, and a flag without its wait raise hivm_order.Race or IndexError.
"""

from __future__ import annotations

import math
from functools import cache
from unittest.mock import patch

import torch

from profiling import hivm, npu_reference
from profiling.hivm_machine import Machine
from rdn_fast.rdb import naive, npu_conv, npu_conv_kernels
from rdn_fast.rdb.npu_conv_kernels import KINDS
from rdn_fast.rdb.npu_conv_planes import Planes

Sizes = tuple[int, int, int, int, int, int]  # batch, G0, G, C, H, W
PROGRAMS = 3  # of a launch, at most: some compute several items


@cache
def machine(text: str) -> Machine:
    return Machine(hivm.compile_module(text))


def emulate(text: str, arguments, items: int) -> None:
    """Stand for npu_conv.launch: run the compiled module on the host."""
    if items:
        machine(text).run(list(arguments), min(PROGRAMS, items))


def of_block(sizes: Sizes, dtype: torch.dtype) -> tuple[list[float], list[float]]:
    """Return the errors of a random block by the compiled kernels, and naive's own in the same dtype.

    Each: of y, of the gradient of x, and the largest one of the parameters' gradients.
    """
    problem = _problem(sizes)
    with patch.object(npu_conv, "launch", emulate):
        own = _solve(npu_conv.rdb, problem, dtype, dtype)
    exact, plain = (_solve(naive.rdb, problem, dtype, precision) for precision in (torch.float64, dtype))

    def worst(results: list[torch.Tensor]) -> list[float]:
        errors = [roundings(r, e, dtype) for r, e in zip(results, exact, strict=True)]
        return [max(part) for part in (errors[:1], errors[1:2], errors[2:])]

    return worst(own), worst(plain)


def of_kernels(sizes: Sizes, dtype: torch.dtype) -> dict[str, float]:
    """Return the largest error of each kernel in the launches of a random block, forward and backward.

    Each launch is compared with npu_reference on the inputs that it has got.
    """
    batch, g0, g, layers, height, width = sizes
    shape = Planes(batch, height, width, g0, g, layers)
    kinds = {npu_conv_kernels.kernel(kind, shape.k, shape.row, shape.rows, dtype): kind for kind in KINDS}
    errors = dict.fromkeys(KINDS, 0.0)

    def launch(text: str, arguments, items: int) -> None:
        kind = kinds[text]
        exact = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]  # copies: y may be a later plane
        npu_reference.run(kind, shape.k, shape.row, *exact)
        emulate(text, arguments, items)
        if kind == "weight_gradient":
            found, right = (each[2].sum(0, dtype=torch.float64) for each in (arguments, exact))
        else:
            chunks = arguments[6] // arguments[7]  # items over tiles of a plane
            found, right = (shape.images(each[4][:chunks])[..., :width, :] for each in (arguments, exact))
        errors[kind] = max(errors[kind], roundings(found, right, dtype))

    with patch.object(npu_conv, "launch", launch):
        _solve(npu_conv.rdb, _problem(sizes), dtype, dtype)
    return errors


def roundings(found: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> float:
    """Return the largest error in roundings of the dtype; infinity for NaN."""
    error = ((found - right).abs().max() / right.abs().max() / (torch.finfo(dtype).eps / 2)).item()
    return torch.inf if math.isnan(error) else error


def _problem(sizes: Sizes) -> list[torch.Tensor]:
    """Return random [gradient of y, x, fuse_w, fuse_b, conv_w..., conv_b...] of a block."""
    batch, g0, g, layers, height, width = sizes
    torch.manual_seed(0)
    seen = [g0 + j * g for j in range(layers)]
    tensors = [torch.randn(batch, g0, height, width), torch.randn(g0, g0 + layers * g, 1, 1) * 0.05, torch.randn(g0)]
    tensors += [torch.randn(g, n, 3, 3) * 0.1 * n**-0.5 for n in seen]
    tensors += [(-1.0) ** torch.arange(g) for _ in seen]  # keeps the ReLUs' inputs away from 0
    return [torch.randn(batch, g0, height, width), *tensors]


def _solve(rdb, problem: list[torch.Tensor], dtype: torch.dtype, precision: torch.dtype) -> list[torch.Tensor]:
    """Return y and all gradients, of a problem rounded to dtype and computed in precision."""
    upstream, *leaves = (tensor.to(dtype).to(precision) for tensor in problem)
    x, fuse_w, fuse_b, *convs = (tensor.requires_grad_() for tensor in leaves)
    y = rdb(x, convs[: len(convs) // 2], convs[len(convs) // 2 :], fuse_w, fuse_b)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]
