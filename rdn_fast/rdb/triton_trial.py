"""`python -m rdn_fast.rdb.triton_trial DEVICE`: launch all kernels of triton_planes there, and check their results.

Ends with 0 if they are right, with trial.NO_DEVICE where this process cannot use the device, else with 1 and a line
that tells what is wrong. rdb/trial.py runs it. What Triton compiles here is compiled for later processes, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from rdn_fast.devices import synchronize
from rdn_fast.errors import what_failed
from rdn_fast.rdb import naive, triton_planes
from rdn_fast.rdb.trial import on_its_device

SHAPE = 1, 64, 32, 32  # B, G0, H, W: the kernels are those of the reference's models and patches
LAYERS = 2
FAR = 30  # roundings (eps) from naive in float32, as 2-norms; right results are at 1 in fp16, 6 in bf16: ReLUs flip


def flaw(
    device: torch.device, rdb: Callable, dtype: torch.dtype = torch.float16, shape: tuple = SHAPE, repeats: int = 0
) -> str | None:
    """Return what is wrong with a block by `rdb`, forward or backward, or None. `repeats` must give the same bits."""
    arguments, upstream = _problem(device, shape)
    oracle = _solve(naive.rdb, arguments, upstream, torch.float32)
    try:
        found = _solve(rdb, arguments, upstream, dtype)
        again = [_solve(rdb, arguments, upstream, dtype) for _ in range(repeats)]
        synchronize(device)
    except Exception as error:  # whatever a compiler, a driver or a kernel raises
        return f"{type(error).__name__}: {what_failed(error)}"
    for (name, right), result in zip(oracle.items(), found.values(), strict=True):
        error = ((result.float() - right).norm() / right.norm()).item()
        if not error <= FAR * torch.finfo(dtype).eps:  # NaN is none
            return f"{name} is wrong by {error:.2g}"
        if not all(torch.equal(result, other[name]) for other in again):
            return f"{name} differs from run to run"
    return None


def _problem(device: torch.device, shape: tuple) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return [x, fuse_w, fuse_b, conv_w..., conv_b...] and the gradient of y, float32."""
    generator = torch.Generator().manual_seed(0)
    g0 = shape[1]

    def normal(*size: int, std: float = 1.0) -> torch.Tensor:
        return (torch.randn(size, generator=generator) * std).to(device)

    channels = [g0 * (1 + i) for i in range(LAYERS)]
    convs = [normal(g0, n, 3, 3, std=(2 / (9 * n)) ** 0.5) for n in channels]
    biases = [normal(g0, std=0.1) for _ in channels]
    n = g0 * (1 + LAYERS)
    return [normal(*shape), normal(g0, n, 1, 1, std=n**-0.5), normal(g0, std=0.1), *convs, *biases], normal(*shape)


def _solve(rdb: Callable, arguments: list, upstream: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    x, fuse_w, fuse_b, *convs = leaves = [tensor.to(dtype).requires_grad_() for tensor in arguments]
    y = rdb(x, convs[:LAYERS], convs[LAYERS:], fuse_w, fuse_b)
    names = ["x", "the fusion's weights", "the fusion's biases", *["weights"] * LAYERS, *["biases"] * LAYERS]
    gradients = torch.autograd.grad(y, leaves, upstream.to(dtype))
    named = {f"the gradient of {name} ({i})": g for i, (name, g) in enumerate(zip(names, gradients, strict=True))}
    return {"the output": y.detach()} | named


def main() -> int:
    return on_its_device(lambda device: flaw(device, triton_planes.rdb))


if __name__ == "__main__":
    sys.exit(main())
