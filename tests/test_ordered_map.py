"""ordered_map: order, bounded look-ahead, and errors, whatever the number of threads."""

import itertools
import threading

import pytest
from waiting import PATIENCE

from rdn_fast.ordered_map import ordered_map


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_ordered_map_keeps_the_order(workers):
    assert list(ordered_map(lambda i: i * i, range(50), workers, ahead=6)) == [i * i for i in range(50)]
    assert list(ordered_map(str, [], workers, ahead=6)) == []


def test_ordered_map_keeps_the_order_when_later_items_finish_first():
    done = [threading.Event() for _ in range(6)]

    def function(i):
        if i % 2 == 0:  # waits for the item after it, which another thread computes
            assert done[i + 1].wait(timeout=PATIENCE)
        done[i].set()
        return i

    assert list(ordered_map(function, range(6), workers=2, ahead=4)) == list(range(6))


@pytest.mark.parametrize("workers", [1, 3])
def test_ordered_map_looks_ahead_only_so_far(workers):
    taken = []

    def endless():
        for i in itertools.count():
            taken.append(i)
            yield i

    results = ordered_map(lambda i: i, endless(), workers, ahead=5)
    for k in range(20):
        assert next(results) == k
        assert k < len(taken) <= k + 1 + 5
    results.close()


def test_ordered_map_without_workers_computes_in_this_thread_when_asked():
    threads = []

    def function(i):
        threads.append(threading.current_thread())
        return i

    results = ordered_map(function, itertools.count(), workers=0, ahead=5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert threads == [threading.current_thread()] * 3


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_ordered_map_raises_where_the_result_was_due_and_ends_its_threads(workers):
    before = set(threading.enumerate())

    def function(i):
        if i == 3:
            raise ValueError("three")
        return i

    results = ordered_map(function, range(10), workers, ahead=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert set(threading.enumerate()) == before


def test_ordered_map_passes_on_an_error_of_its_source():
    def source():
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(ordered_map(lambda i: i, source(), workers=2, ahead=4))
