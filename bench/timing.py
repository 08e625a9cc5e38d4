"""Time contenders in turn (A B A B ...), so that a drift of the machine's speed hits all of them alike."""

from __future__ import annotations

import math
import statistics
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F

from bench.case import Contender
from rdn_fast import devices

SPAN = 0.2  # seconds; shorter runs are repeated within one reading of the clock


class Times(NamedTuple):
    """Seconds of one run, one value per round."""

    rounds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def over(self, other: Times) -> float:
        """Return how many times as fast as `other`: the median over rounds of the ratio within the round."""
        return statistics.median(b / a for a, b in zip(self.rounds, other.rounds, strict=True))


def interleave(contenders: dict, device: torch.device, rounds: int, span: float = SPAN) -> dict:
    """Time {key: Contender} in turn. Return {key: Times}. Each must have been warmed up by once()."""
    repeats: dict = {}
    times = {key: [] for key in contenders}
    for _ in range(rounds):
        for key, contender in contenders.items():
            if key not in repeats:
                seconds = once(contender, device)
                repeats[key] = math.ceil(span / seconds)
                if repeats[key] <= 1:
                    times[key].append(seconds)
                    continue
            times[key].append(once(contender, device, repeats[key]))
    return {key: Times(seconds) for key, seconds in times.items()}


def once(contender: Contender, device: torch.device, repeats: int = 1) -> float:
    """Return the mean seconds of `repeats` runs on one set of fresh inputs, synchronized at both ends."""
    inputs = contender.fresh()
    devices.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        contender.run(*inputs)
    devices.synchronize(device)
    return (time.perf_counter() - start) / repeats


def ceilings(device: torch.device, dtypes: list[torch.dtype], rounds: int = 7) -> dict[torch.dtype, tuple]:
    """Return {dtype: (what was run, its Times, the GFLOP/s of its fastest round)}.

    A plain convolution, channels-last, which is what a dense block consists of; on accelerators a large product.
    """
    on_cpu, size = device.type == "cpu", 8192
    flop = 2 * 8 * 32 * 32 * 9 * 256 * 64 if on_cpu else 2 * size**3

    def fresh(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        sizes = ((8, 256, 32, 32), (64, 256, 3, 3)) if on_cpu else ((size, size), (size, size))
        made = (torch.randn(size, device=device, dtype=dtype) for size in sizes)
        return tuple(x.contiguous(memory_format=torch.channels_last) if on_cpu else x for x in made)

    convolution = torch.no_grad()(lambda x, weight: F.conv2d(x, weight, padding=1))
    run, what = (convolution, "conv 3x3 256->64") if on_cpu else (torch.mm, "product 8192^3")
    plain = {dtype: Contender(run, lambda dtype=dtype: fresh(dtype)) for dtype in dtypes}
    for contender in plain.values():
        once(contender, device)
    times = interleave(plain, device, rounds)
    return {dtype: (what, times[dtype], flop / min(times[dtype].rounds) / 1e9) for dtype in dtypes}
