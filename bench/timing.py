"""Clocks: contenders are timed in turn (A B A B ...), so that a machine that drifts drifts for all of them alike."""

from __future__ import annotations

import math
import statistics
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F

from rdn_fast import devices

SPAN = 0.2  # seconds; what takes less is run several times within one reading of the clock


class Times(NamedTuple):
    """Seconds of one run, in every round."""

    rounds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def over(self, other: Times) -> float:
        """How many times as fast as `other`: the median over rounds of the ratio within the round."""
        return statistics.median(b / a for a, b in zip(self.rounds, other.rounds, strict=True))


def interleave(contenders: dict, device: torch.device, rounds: int, span: float = SPAN) -> dict:
    """{key: Times} for {key: contender}. A contender has fresh() (new random inputs, outside the clock) and run(); it has been warmed up by once()."""
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


def once(contender, device: torch.device, repeats: int = 1) -> float:
    """Seconds of one run on fresh inputs, as the mean of `repeats`; synchronized at both ends."""
    contender.fresh()
    devices.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        contender.run()
    devices.synchronize(device)
    return (time.perf_counter() - start) / repeats


class _Convolution:
    """3x3, 256 -> 64 channels, channels-last: what a dense block consists of, at its best."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.flop = 2 * 8 * 32 * 32 * 9 * 256 * 64
        self.w = torch.randn(64, 256, 3, 3).to(device, dtype, memory_format=torch.channels_last)
        self._like = {"device": device, "dtype": dtype}

    def fresh(self) -> None:
        self.x = torch.randn(8, 256, 32, 32, **self._like).contiguous(memory_format=torch.channels_last)

    def run(self) -> None:
        with torch.no_grad():
            F.conv2d(self.x, self.w, padding=1)


class _Product:
    """8192 x 8192 x 8192 matrix product."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.flop = 2 * 8192**3
        self._like = {"device": device, "dtype": dtype}

    def fresh(self) -> None:
        self.a, self.b = torch.randn(2, 8192, 8192, **self._like)

    def run(self) -> None:
        self.a @ self.b


def ceilings(
    device: torch.device, dtypes: list[torch.dtype], rounds: int = 7
) -> dict[torch.dtype, tuple[str, Times, float]]:
    """{dtype: (what was run, its Times, the GFLOP/s of its fastest round)}: a plain convolution on a CPU, a large matrix product elsewhere."""
    kind, what = (_Convolution, "conv 3x3 256->64") if device.type == "cpu" else (_Product, "product 8192^3")
    plain = {dtype: kind(device, dtype) for dtype in dtypes}
    for contender in plain.values():
        once(contender, device)
    times = interleave(plain, device, rounds)
    return {dtype: (what, times[dtype], plain[dtype].flop / min(times[dtype].rounds) / 1e9) for dtype in dtypes}
