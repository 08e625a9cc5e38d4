"""What the device can do at most, timed in turn with what is held against it: a product, a convolution, a copy."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from bench.case import Contender
from bench.timing import Times, interleave, once

PLAIN_AT_MOST = 1.05  # of the ceiling: a plain recipe above it shows that the ceiling was disturbed


class Ceiling(NamedTuple):
    """A key of timing.interleave. `work`: FLOP of a run; of a copy (uint8) the bytes that are read and written."""

    what: str
    dtype: torch.dtype
    work: int


def contenders(device: torch.device, dtypes: list[torch.dtype]) -> dict[Ceiling, Contender]:
    """Return what is timed for each dtype, warmed up: products, on a CPU a convolution too; for uint8 a copy."""
    found = {}
    for dtype in dict.fromkeys(dtypes):
        if dtype == torch.uint8:
            ceiling, contender = copy(device, 2**28 if device.type == "cpu" else 2**30)
            found[ceiling] = contender
            continue
        size = 2048 if device.type == "cpu" else 8192
        found[Ceiling(f"product {size}^3", dtype, 2 * size**3)] = Contender(
            torch.mm, lambda dtype=dtype, size=size: _normal(device, dtype, (size, size), (size, size))
        )
        if device.type == "cpu":
            convolution = Ceiling("conv 3x3 256->64", dtype, 2 * 8 * 32 * 32 * 9 * 256 * 64)
            found[convolution] = Contender(
                torch.no_grad()(lambda x, weight: F.conv2d(x, weight, padding=1)),
                lambda dtype=dtype: _normal(device, dtype, (8, 256, 32, 32), (64, 256, 3, 3)),
            )
    for contender in found.values():
        once(contender, device)
    return found


def _normal(device: torch.device, dtype: torch.dtype, *sizes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Return random tensors, channels-last where they have four dimensions."""
    made = (torch.randn(size, device=device, dtype=dtype) for size in sizes)
    return tuple(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in made)


def copy(device: torch.device, size: int) -> tuple[Ceiling, Contender]:
    """Return a copy of `size` bytes; each is read and written."""
    target = torch.empty(size, dtype=torch.uint8, device=device)

    def fresh() -> tuple[torch.Tensor]:
        return (torch.randint(256, target.shape, dtype=torch.uint8, device=device),)

    return Ceiling(f"copy of {size >> 20} MiB", torch.uint8, 2 * size), Contender(target.copy_, fresh)


def rates(times: dict[object, Times]) -> dict[torch.dtype, tuple[Ceiling, float]]:
    """Return for each dtype the fastest of its Ceilings, and the FLOP or bytes a second of that one's fastest round."""
    found = {}
    for key, mine in times.items():
        if isinstance(key, Ceiling):
            rate = key.work / mine.rounds[0]
            if key.dtype not in found or rate > found[key.dtype][1]:
                found[key.dtype] = key, rate
    return found


def measure(
    device: torch.device, dtypes: list[torch.dtype], rounds: int = 7
) -> dict[torch.dtype, tuple[Ceiling, float]]:
    """Return rates() of contenders that are timed by themselves."""
    return rates(interleave(contenders(device, dtypes), device, rounds))
