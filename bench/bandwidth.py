"""What memory can do: a large copy, as the ceiling of everything that moves more than it computes."""

from __future__ import annotations

import torch

from bench.timing import Times, interleave, once


class Copy:
    """A copy of `bytes` bytes; it moves twice as many."""

    def __init__(self, device: torch.device, bytes: int):
        self.moved = 2 * bytes
        self._to, self._device = torch.empty(bytes, dtype=torch.uint8, device=device), device

    def fresh(self) -> None:
        self._from = torch.randint(256, self._to.shape, dtype=torch.uint8, device=self._device)

    def run(self) -> None:
        self._to.copy_(self._from)


def bandwidth(device: torch.device, rounds: int = 5) -> tuple[str, Times, float]:
    """(what was run, its Times, the GB/s, read and written, of its fastest round); far more than any cache holds."""
    copy = Copy(device, 2**28 if device.type == "cpu" else 2**30)
    once(copy, device)
    times = interleave({copy: copy}, device, rounds)[copy]
    return f"copy of {copy.moved >> 21} MiB", times, copy.moved / min(times.rounds) / 1e9
