"""How much of eight cards' all-reduce the backward pass does not cover, for DistributedDataParallel's buckets."""

from __future__ import annotations

from itertools import accumulate

from profiling.npu_chips import LATENCY, Chip, Scenario
from profiling.npu_operators import Step
from profiling.npu_step import seconds

MIB = 1 << 20
FIRST, USUAL = 1 * MIB, 25 * MIB  # torch's limits: of the first bucket, of the others
CAPS = (1, 2, 4, 8, 25)  # MiB: the limits to choose from


def buckets(ready: list[tuple[float, int]], first: int = FIRST, cap: int = USUAL) -> list[tuple[float, int]]:
    """Return (when it is complete, bytes) of each bucket of gradients, given those of each gradient in order.

    As the reducer fills them from the second step on: a bucket ends with the gradient that reaches its limit.
    """
    found, size, limit = [], 0, first
    for i, (at, bytes) in enumerate(ready):
        size += bytes
        if size >= limit or i == len(ready) - 1:
            found.append((at, size))
            size, limit = 0, cap
    return found


def uncovered(parts: list[tuple[float, int]], end: float, chip: Chip, share: float = 1) -> float:
    """Return the seconds of all-reduces after the backward pass's end. share: of the bytes that are sent, 0.5 in fp16.

    All-reduces run one after another, each from when its bucket is complete.
    """
    free = 0.0
    for at, bytes in parts:
        free = max(free, at) + LATENCY + share * bytes * chip.exchange
    return max(0.0, free - end)


def timed(step: Step, chip: Chip, scenario: Scenario) -> tuple[list[tuple[float, int]], float, float]:
    """Return when each gradient is there, (seconds, bytes); the backward pass's end; the step's end."""
    ends = [0.0, *accumulate(seconds(operator, chip, scenario) for operator in step.operators)]
    last = next(i for i, operator in enumerate(step.operators) if operator.part == "optimizer")
    return [(ends[i], bytes) for i, bytes in step.ready], ends[last], ends[-1]


def efficiency(step: Step, chip: Chip, cap_mib: int | None, share: float, scenario: Scenario) -> float:
    """Return eight cards' speed over eight times one card's. cap_mib: every bucket's limit; None: torch's own.

    share: of the float32 gradients' bytes that are sent.
    """
    ready, end, total = timed(step, chip, scenario)
    limits = (FIRST, USUAL) if cap_mib is None else (cap_mib * MIB, cap_mib * MIB)
    return total / (total + uncovered(buckets(ready, *limits), end, chip, share))
