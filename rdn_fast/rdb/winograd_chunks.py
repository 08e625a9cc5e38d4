"""How many images winograd and amx compute at a time: few enough for the caches, enough to share out among the threads.

Results do not depend on it, bit for bit, so it needs no measurement ahead and need not be remembered: the first calls
with a shape try each size in turn, and later calls take the fastest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

TILES = (64, 16, 32, 128)  # 4x4 tiles of pixels per thread; the first is the default
ROUNDS = 4  # calls with each size; the first warms up
MARGIN = 0.97  # a size must take less than this part of the default's time


class Trials:
    """The sizes that are tried for one shape, and their best seconds."""

    def __init__(self, sizes: list[int]):
        """`sizes`: images, the default first."""
        self.sizes, self.seconds, self.calls = sizes, dict.fromkeys(sizes, float("inf")), 0

    def next(self) -> int:
        """Return the size for the next call: one to try, or the fastest."""
        if self.calls < ROUNDS * len(self.sizes):
            return self.sizes[self.calls % len(self.sizes)]
        default, fastest = self.sizes[0], min(self.sizes, key=self.seconds.get)
        return fastest if self.seconds[fastest] < MARGIN * self.seconds[default] else default

    def add(self, size: int, seconds: float) -> None:
        """Note how long a call with this size took."""
        if self.calls >= len(self.sizes):
            self.seconds[size] = min(seconds, self.seconds[size])
        self.calls += 1


def slices(batch: int, size: int) -> list[slice]:
    """Return the slices of a batch with `size` images each; the last may have fewer."""
    return [slice(first, min(first + size, batch)) for first in range(0, batch, size)]


class Chunks:
    """Chooses the chunks of a batch, for each kind of call apart."""

    def __init__(self):
        self._trials: dict[tuple, Trials] = {}

    def clear(self) -> None:
        """Forget all timings; the next calls try the sizes again."""
        self._trials.clear()

    @contextmanager
    def timed(self, kind: tuple, batch: int, tiles: int) -> Iterator[int]:
        """Yield how many of a batch of images with this many tiles each; time what is computed under `with`.

        `kind` is all that the time depends on besides the number of threads.
        """
        threads = torch.get_num_threads()
        trials = self._trials.get((kind, threads))
        if trials is None:
            sizes = [max(1, min(n * threads // tiles, batch)) for n in TILES]
            trials = self._trials[kind, threads] = Trials(list(dict.fromkeys(sizes)))
        size = trials.next()
        start = time.perf_counter()
        yield size
        trials.add(size, time.perf_counter() - start)
