"""Damage to a file's bytes, drawn from a seed: what disks, copies and other programs do to files."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_HEAD = 2048  # bytes: half of the damage is done here or at the end, where formats keep their tables
_NUMBERS = (0, 1, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)  # for fields of sizes


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
    """Return the content with one damage, rarely up to three, not equal to it."""
    result = bytearray(content)
    while bytes(result) == content:
        for _ in range(rng.choice([1, 1, 1, 1, 2, 3])):
            if result:
                DAMAGES[rng.integers(len(DAMAGES))](rng, result)
    return bytes(result)


def _place(rng: np.random.Generator, size: int) -> int:
    where = rng.random()
    if where < 0.5:
        return int(rng.integers(size))
    offset = int(rng.integers(min(size, _HEAD)))
    return offset if where < 0.8 else size - 1 - offset


def _span(rng: np.random.Generator, size: int) -> slice:
    """Return a span of one byte up to the whole file; short ones are as likely as long ones."""
    start = _place(rng, size)
    return slice(start, start + min(size - start, int(2 ** rng.uniform(0, np.log2(size) + 0.01))))


def _flip_bits(rng, content) -> None:
    for _ in range(2 ** rng.integers(6)):
        content[_place(rng, len(content))] ^= 1 << rng.integers(8)


def _truncate(rng, content) -> None:
    del content[_place(rng, len(content)) :]


def _fill(rng, content) -> None:
    span = _span(rng, len(content))
    content[span] = bytes([rng.choice([0, 0, 0, 255])]) * (span.stop - span.start)


def _scatter(rng, content) -> None:
    span = _span(rng, len(content))
    content[span] = rng.bytes(span.stop - span.start)


def _shuffle(rng, content) -> None:
    span = _span(rng, len(content))
    content[span] = rng.permutation(np.frombuffer(bytes(content[span]), np.uint8)).tobytes()


def _swap(rng, content) -> None:
    """Exchange two blocks, as a file system does that loses track."""
    block = min(2 ** int(rng.integers(4, 13)), len(content) // 2)
    a, b = (int(rng.integers(len(content) - block + 1)) for _ in range(2))
    content[a : a + block], content[b : b + block] = content[b : b + block], content[a : a + block]


def _copy_over(rng, content) -> None:
    span = _span(rng, len(content))
    size = span.stop - span.start
    start = int(rng.integers(len(content) - size + 1))
    content[span] = content[start : start + size]


def _cut_out(rng, content) -> None:
    del content[_span(rng, len(content))]


def _put_in(rng, content) -> None:
    start = _place(rng, len(content))
    content[start:start] = rng.bytes(int(2 ** rng.uniform(0, 12)))


def _set_number(rng, content) -> None:
    width = int(rng.choice([1, 2, 4, 8]))
    start = _place(rng, len(content)) // width * width
    number = _NUMBERS[rng.integers(len(_NUMBERS))] % 256**width
    content[start : start + width] = number.to_bytes(width, "little")


DAMAGES: tuple[Callable[[np.random.Generator, bytearray], None], ...] = (
    _flip_bits,
    _flip_bits,
    _truncate,
    _fill,
    _scatter,
    _shuffle,
    _swap,
    _copy_over,
    _cut_out,
    _put_in,
    _set_number,
    _set_number,
)
