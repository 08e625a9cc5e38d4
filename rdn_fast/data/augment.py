"""Position and orientation of every patch: a pure function of (seed, epoch, image), computed for many images at once.

The random numbers are hashes. Patch k of an epoch therefore depends on no generator, worker, rank or earlier step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FLIP_VERTICAL, FLIP_HORIZONTAL, TRANSPOSE = 1, 2, 4  # bits of Plan.orientation, as in patches.c


class Plan(NamedTuple):
    """Patches [B] of images.

    top, left: int64, of the crop in LR pixels. orientation: uint8, the sum of FLIP_VERTICAL (y -> -y), FLIP_HORIZONTAL
    (x -> -x) and TRANSPOSE (exchange x and y, after the flips).
    """

    top: np.ndarray
    left: np.ndarray
    orientation: np.ndarray


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """Return the permutation of n images in which `epoch` visits them, int64 [n]."""
    return np.argsort(_hash(seed, epoch, np.arange(n), stream=0), kind="stable")


def plan(seed: int, epoch: int, index: np.ndarray, sizes: np.ndarray, patch: int) -> Plan:
    """Draw the patches of images `index` [B] in `epoch`. sizes: [B, 2] LR heights and widths, each at least `patch`."""
    top, left = (_below(_hash(seed, epoch, index, stream=1 + axis), sizes[:, axis] - patch + 1) for axis in (0, 1))
    return Plan(top, left, (_hash(seed, epoch, index, stream=3) >> np.uint64(60) & np.uint64(7)).astype(np.uint8))


def start_address(plan: Plan, offset: np.ndarray, pitch: np.ndarray, factor: int) -> np.ndarray:
    """Return the address of each crop's first byte, int64 [B].

    offset [B]: addresses of the images' first bytes. pitch [B]: bytes from row to row.
    factor: 1 for LR, the scale for HR.
    """
    return offset + plan.top * factor * pitch + plan.left * (3 * factor)


def strides(start: np.ndarray, pitch: np.ndarray, orientation: np.ndarray, size: int) -> np.ndarray:
    """Describe oriented patches as strided views: int64 [3, B], the address of pixel (0, 0), row stride, column stride.

    Pixel (y, x) of patch k lies at s[0, k] + y * s[1, k] + x * s[2, k].
    start [B]: addresses of the crops, size x size pixels of 3 bytes. pitch [B]: bytes from row to row.
    """
    bits = FLIP_VERTICAL, FLIP_HORIZONTAL, TRANSPOSE
    vertical, horizontal, transpose = ((orientation & bit).astype(bool) for bit in bits)
    start = start + vertical * (size - 1) * pitch + horizontal * (size - 1) * 3
    row, column = np.where(vertical, -pitch, pitch), np.where(horizontal, -3, 3)
    return np.stack([start, np.where(transpose, column, row), np.where(transpose, row, column)])


def _hash(seed: int, epoch: int, index: np.ndarray, stream: int) -> np.ndarray:
    """Return 64 random bits per index: splitmix64's finalizer (Steele et al., OOPSLA 2014), chained over the words."""
    state = 0
    for word in (seed, epoch, stream):  # equal for all indices: Python's integers take a tenth of numpy's time
        state = ((state ^ word) + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    bits = (np.uint64(state) ^ index.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _below(bits: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Return uniform integers in 0..limit-1 from the upper 32 bits (bias below limit / 2^32)."""
    return ((bits >> np.uint64(32)) * limit.astype(np.uint64) >> np.uint64(32)).astype(np.int64)
