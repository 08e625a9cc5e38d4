"""Which patch is cut, and how it is turned: a pure function of (seed, epoch, index), decided for a whole batch at once.

The random numbers are hashes, so patch k of an epoch needs no state: not of a generator, a worker, a rank or an earlier step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Plan(NamedTuple):
    """Per patch: the crop's top and left in LR pixels [B] int64; flips and transpose [B] bool."""

    top: np.ndarray
    left: np.ndarray
    flip_vertical: np.ndarray
    flip_horizontal: np.ndarray
    transpose: np.ndarray


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The permutation of n images in which `epoch` visits them, [n] int64."""
    return np.argsort(_hash(seed, epoch, np.arange(n), stream=0), kind="stable")


def plan(seed: int, epoch: int, index: np.ndarray, sizes: np.ndarray, patch: int) -> Plan:
    """Decide the patches of images `index` [B] in `epoch`; sizes: [B, 2] their LR height and width, each at least `patch`."""
    top, left = (_below(_hash(seed, epoch, index, stream=1 + axis), sizes[:, axis] - patch + 1) for axis in (0, 1))
    bits = _hash(seed, epoch, index, stream=3)
    return Plan(top, left, *((bits >> np.uint64(60 + k)) & np.uint64(1) == 1 for k in range(3)))


def corner(plan: Plan, offset: np.ndarray, pitch: np.ndarray, factor: int) -> np.ndarray:
    """The addresses [B] of the planned crops' first bytes in images whose bytes begin at offset [B], rows pitch [B] bytes apart.

    factor: 1 for LR, the scale for HR.
    """
    return offset + plan.top * factor * pitch + plan.left * (3 * factor)


def walk(plan: Plan, start: np.ndarray, pitch: np.ndarray, size: int) -> np.ndarray:
    """How to turn crops as planned: [3, B] int64 (start, down, right); pixel (y, x) of a turned crop lies at start + y * down + x * right.

    start [B]: the addresses of the crops as they lie, size x size pixels of 3 bytes, rows pitch [B] bytes apart.
    """
    start = start + plan.flip_vertical * (size - 1) * pitch + plan.flip_horizontal * (size - 1) * 3
    down, right = np.where(plan.flip_vertical, -pitch, pitch), np.where(plan.flip_horizontal, -3, 3)
    return np.stack([start, np.where(plan.transpose, right, down), np.where(plan.transpose, down, right)])


def _hash(seed: int, epoch: int, index: np.ndarray, stream: int) -> np.ndarray:
    """64 random bits per index: splitmix64's finalizer (Steele et al., OOPSLA 2014), chained over the words."""
    state = 0
    for word in (seed, epoch, stream):  # the same for all: in Python's integers, a tenth of the time
        state = ((state ^ word) + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    bits = (np.uint64(state) ^ index.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _below(bits: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Uniform integers in 0..limit-1 from the upper 32 bits (bias below limit / 2^32)."""
    return ((bits >> np.uint64(32)) * limit.astype(np.uint64) >> np.uint64(32)).astype(np.int64)
