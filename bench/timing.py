"""Time contenders in turn (A B A B ...) and keep each one's quietest rounds.

A shared host's speed changes by factors within seconds. In turn, all contenders meet the same phases; rounds are added
until the quietest of each agree. Every contender has run equally often, so none has had more chances than another.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from bench.case import Contender
from bench.results import STEADY
from rdn_fast import devices

SPAN = 0.2  # seconds; shorter runs are repeated within one reading of the clock
AGAIN = 3  # rounds are added up to so many times those asked for
PATIENCE = 60.0  # seconds after which no further round is added


class Times(NamedTuple):
    """Seconds of one run, one value per round; the `keep` quietest rounds count (None: all)."""

    every: list[float]
    keep: int | None = None

    @property
    def rounds(self) -> list[float]:
        return sorted(self.every)[: self.keep]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """The slowest of the rounds that count over the fastest."""
        return self.rounds[-1] / self.rounds[0]

    def over(self, other: Times) -> float:
        """Return how many times as fast as `other`: the ratio of the medians, as a row's own columns have it."""
        return other.median / self.median


def steady(times: dict[object, Times]) -> bool:
    return all(mine.spread <= STEADY for mine in times.values())


def repeat(turn: Callable[[], None], rounds: int, settled: Callable[[], bool]) -> None:
    """Call turn() `rounds` times, then until settled() or AGAIN or PATIENCE ends it."""
    for _ in range(rounds):
        turn()
    end = time.monotonic() + PATIENCE
    for _ in range((AGAIN - 1) * rounds):
        if settled() or time.monotonic() > end:
            break
        turn()


def interleave(
    contenders: dict,
    device: torch.device,
    rounds: int,
    span: float = SPAN,
    settled: Callable[[dict], bool] = steady,
    times: dict | None = None,
) -> dict:
    """Time {key: Contender} in turn. Return {key: Times}. Each must have been warmed up by once().

    times: {key: Times} of rounds that count too, to be continued.
    """
    repeats: dict = {}
    times = times or {key: Times([], rounds) for key in contenders}

    def turn() -> None:
        for key, contender in contenders.items():
            if key not in repeats:
                seconds = once(contender, device)
                repeats[key] = math.ceil(span / seconds)
                if repeats[key] <= 1:
                    times[key].every.append(seconds)
                    continue
            times[key].every.append(once(contender, device, repeats[key]))

    repeat(turn, rounds, lambda: settled(times))
    return times


def once(contender: Contender, device: torch.device, repeats: int = 1) -> float:
    """Return the mean seconds of `repeats` runs on one set of fresh inputs, synchronized at both ends."""
    inputs = contender.fresh()
    devices.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        contender.run(*inputs)
    devices.synchronize(device)
    return (time.perf_counter() - start) / repeats
