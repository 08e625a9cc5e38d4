"""The choice of winograd's chunks by timing, with a clock of the test's own."""

import pytest
import torch

from rdn_fast.rdb import winograd_chunks
from rdn_fast.rdb.winograd_chunks import ROUNDS, TILES, Chunks


@pytest.fixture
def clock(monkeypatch):
    """Return a list whose only element is the time, and let two threads compute."""
    now = [0.0]
    monkeypatch.setattr(winograd_chunks.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return now


def calls(chunks, clock, seconds, count, batch=64, tiles=16):
    """Compute `count` batches, of which one takes seconds(size of a chunk); return the sizes."""
    sizes = []
    for _ in range(count):
        with chunks.timed(("forward",), batch, tiles) as size:
            sizes.append(size)
            clock[0] += seconds(size)
    return sizes


def test_the_first_calls_try_each_size_and_later_ones_take_the_fastest(clock):
    sizes = calls(Chunks(), clock, {8: 4.0, 2: 1.0, 4: 2.0, 16: 8.0}.get, ROUNDS * len(TILES) + 5)
    assert sizes == [8, 2, 4, 16] * ROUNDS + [2] * 5


def test_the_best_round_counts_and_the_first_does_not(clock):
    slow = iter([0.1, 9, 9, 9, 9, 9, 1, 9, 9, 1, 9, 9, 9, 9, 9, 0.5])
    assert calls(Chunks(), clock, lambda _: next(slow, 1.0), ROUNDS * len(TILES) + 1)[-1] == 16


def test_a_size_that_is_hardly_faster_is_not_taken(clock):
    assert calls(Chunks(), clock, {8: 1.0, 2: 0.98, 4: 2.0, 16: 8.0}.get, ROUNDS * len(TILES) + 1)[-1] == 8


@pytest.mark.parametrize(
    ("batch", "tiles", "expected"), [(3, 1, {3}), (5, 10_000, {1}), (64, 36, {1, 3, 7}), (0, 9, {1})]
)
def test_chunks_are_whole_images_and_cover_the_batch(clock, batch, tiles, expected):
    chunks = Chunks()
    assert set(calls(chunks, clock, lambda _: 1.0, ROUNDS * len(TILES), batch, tiles) if batch else {1}) == expected
    with chunks.timed(("forward",), batch, tiles) as size:
        parts = winograd_chunks.slices(batch, size)
    assert [i for part in parts for i in range(batch)[part]] == list(range(batch))


def test_other_shapes_and_numbers_of_threads_are_tried_apart(clock, monkeypatch):
    chunks = Chunks()
    fastest = {8: 4.0, 2: 1.0, 4: 2.0, 16: 8.0, 32: 9.0}.get
    calls(chunks, clock, fastest, ROUNDS * len(TILES))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert calls(chunks, clock, fastest, 4) == [16, 4, 8, 32]
    chunks.clear()
    assert calls(chunks, clock, fastest, 1) == [16]
