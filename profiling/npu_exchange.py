"""How much of eight cards' all-reduces the backward pass does not cover, for buckets of gradients."""

from __future__ import annotations

from bisect import bisect
from itertools import accumulate

from profiling.npu_chips import LATENCY, Chip, Scenario
from profiling.npu_operators import Step
from profiling.npu_step import seconds

MIB = 1 << 20
Sizes = list[tuple[float, int]]  # seconds and bytes, of gradients or of buckets
BEFORE = (0.4, 0.3, 0.24, 0.06)  # shares whose last limit lies within the last block of rdn-b


def in_torch(ready: Sizes, first: int = MIB, cap: int = 25 * MIB) -> Sizes:
    """Return when each bucket of DistributedDataParallel is complete, and its bytes, given those of each gradient.

    As its reducer fills them from the second step on: a bucket ends with the gradient that reaches its limit.
    """
    found, size, limit = [], 0, first
    for i, (at, bytes) in enumerate(ready):
        size += bytes
        if size >= limit or i == len(ready) - 1:
            found.append((at, size))
            size, limit = 0, cap
    return found


def in_shares(ready: Sizes, shares: tuple[float, ...]) -> Sizes:
    """Return the same of GradientBuckets: a gradient belongs to the bucket in whose share it begins."""
    sizes = [bytes for _, bytes in ready]
    limits = [share * sum(sizes) for share in accumulate(shares[:-1])]
    found: dict[int, tuple[float, int]] = {}
    for (at, bytes), start in zip(ready, accumulate(sizes, initial=0), strict=False):
        bucket = bisect(limits, start)
        found[bucket] = (at, found.get(bucket, (0, 0))[1] + bytes)
    return list(found.values())


def uncovered(parts: Sizes, end: float, chip: Chip, share: float = 1) -> float:
    """Return the seconds of all-reduces after the backward pass's end. share: of the bytes that are sent, 0.5 in fp16.

    All-reduces run one after another, each from when its bucket is complete.
    """
    free = 0.0
    for at, bytes in parts:
        free = max(free, at) + LATENCY + share * bytes * chip.exchange
    return max(0.0, free - end)


def timed(step: Step, chip: Chip, scenario: Scenario) -> tuple[Sizes, float, float]:
    """Return when each gradient is there, (seconds, bytes); the backward pass's end; the step's end."""
    ends = [0.0, *accumulate(seconds(operator, chip, scenario) for operator in step.operators)]
    last = next(i for i, operator in enumerate(step.operators) if operator.part == "optimizer")
    return [(ends[i], bytes) for i, bytes in step.ready], ends[last], ends[-1]


def efficiency(step: Step, chip: Chip, shares: tuple[float, ...] | None, bytes: float, scenario: Scenario) -> float:
    """Return eight cards' speed over eight times one card's.

    shares: of GradientBuckets; None: DistributedDataParallel's own buckets. bytes: that are sent for a float32.
    """
    ready, end, total = timed(step, chip, scenario)
    parts = in_torch(ready) if shares is None else in_shares(ready, shares)
    return total / (total + uncovered(parts, end, chip, bytes / 4))
