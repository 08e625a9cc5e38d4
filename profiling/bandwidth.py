"""The bandwidth of memory: a large copy, as the ceiling of everything that moves more than it computes."""

from __future__ import annotations

import torch

from bench.case import Contender
from bench.timing import Times, interleave, once


def copy(device: torch.device, size: int) -> tuple[Contender, int]:
    """Return a copy of `size` bytes, and how many bytes it moves: each is read and written."""
    target = torch.empty(size, dtype=torch.uint8, device=device)

    def fresh() -> tuple[torch.Tensor]:
        return (torch.randint(256, target.shape, dtype=torch.uint8, device=device),)

    return Contender(target.copy_, fresh), 2 * size


def bandwidth(device: torch.device, rounds: int = 5) -> tuple[str, Times, float]:
    """Return (what was run, its Times, the GB/s of its fastest round) of a copy far larger than any cache."""
    size = 2**28 if device.type == "cpu" else 2**30
    contender, moved = copy(device, size)
    once(contender, device)
    times = interleave({0: contender}, device, rounds)[0]
    return f"copy of {size >> 20} MiB", times, moved / min(times.rounds) / 1e9
