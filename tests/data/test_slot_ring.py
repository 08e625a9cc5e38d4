"""The ring of slots: order, bounded look-ahead, no live slot overwritten, and errors that nobody waits for in vain."""

import random
import threading
import time

import numpy as np
import pytest
from waiting import PATIENCE, Caller, in_time, until

from rdn_fast.data.slot_ring import SlotRing


@pytest.fixture
def ring():
    """ring(slots, fill, steps, threads): a Ring; none of its threads is there after close()."""
    before, rings = set(threading.enumerate()), []

    def make(slots, fill, steps, threads) -> SlotRing:
        rings.append(SlotRing(slots, fill, steps, threads))
        return rings[-1]

    yield make
    for one in rings:
        Caller(one.close).ended()
    assert set(threading.enumerate()) <= before


def note(step, slot) -> None:
    slot[:] = [step]


def slots(count: int) -> list[list]:
    return [[] for _ in range(count)]


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_step_comes_once_in_order_in_its_slot(ring, threads, count):
    filled, memory = [], slots(count)

    def fill(step, slot):
        filled.append(step)
        note(step, slot)

    source = ring(memory, fill, range(7, 60), threads)
    for step in range(7, 60):
        slot = in_time(lambda step=step: source.take(step))
        assert slot == [step]
        assert slot is memory[step % count]
        source.give_back(step)
    assert sorted(filled) == list(range(7, 60))


def test_without_threads_the_caller_fills_when_it_asks(ring):
    where = []
    source = ring(slots(3), lambda step, slot: where.append((step, threading.current_thread())), range(5), 0)
    assert not source.ready(0)
    source.take(0)
    source.take(1)
    assert where == [(step, threading.current_thread()) for step in (0, 1)]


@pytest.mark.parametrize("threads", [1, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_it_fills_as_many_steps_ahead_as_there_are_slots_and_no_more(ring, threads, count):
    filled = []

    def fill(step, slot):
        filled.append(step)

    source = ring(slots(count), fill, range(10, 30), threads)
    for held in range(10, 30):  # the oldest step that has not been given back
        expected = list(range(10, min(held + count, 30)))
        until(lambda expected=expected: len(filled) >= len(expected))
        time.sleep(0.003)  # enough for one step too many
        assert sorted(filled) == expected
        source.take(held)
        time.sleep(0.001)
        assert sorted(filled) == expected  # taken is not given back
        source.give_back(held)


def test_ready_says_whether_take_would_wait(ring):
    go = threading.Event()
    source = ring(slots(2), lambda step, slot: go.wait(PATIENCE), range(5), 1)
    assert not source.ready(0)
    taker = Caller(lambda: source.take(0))
    time.sleep(0.01)
    assert taker.is_alive()
    go.set()
    taker.ended()
    assert not source.ready(0)  # it has been taken
    until(lambda: source.ready(1))
    assert not source.ready(2)  # no slot for it yet


def test_later_steps_may_be_filled_first(ring):
    done = [threading.Event() for _ in range(6)]

    def fill(step, slot):
        if step % 2 == 0:  # waits for the step after it, which another thread fills
            assert done[step + 1].wait(PATIENCE)
        note(step, slot)
        done[step].set()

    source = ring(slots(4), fill, range(6), 2)
    for step in range(6):
        assert in_time(lambda step=step: source.take(step)) == [step]
        source.give_back(step)


# ---- errors ----

ENDINGS = [ValueError("broken"), SystemExit(3), KeyboardInterrupt()]


@pytest.mark.parametrize("error", ENDINGS, ids=repr)
@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_reaches_who_waits_already_and_all_who_ask_later(ring, threads, error):
    go = threading.Event()

    def fill(step, slot):
        go.wait(PATIENCE)
        raise error

    source = ring(slots(4), fill, range(20), threads)
    taker = Caller(lambda: source.take(0))
    time.sleep(0.02)
    assert taker.is_alive()
    go.set()
    assert taker.ended().error is error
    for step in (0, 1, 7):
        assert Caller(lambda step=step: source.take(step)).ended().error is error


@pytest.mark.parametrize("error", ENDINGS, ids=repr)
def test_without_threads_an_error_is_raised_where_it_happens(ring, error):
    def fill(step, slot):
        if step == 2:
            raise error

    source = ring(slots(3), fill, range(5), 0)
    source.take(0)
    source.take(1)
    with pytest.raises(type(error)):
        source.take(2)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_an_error_while_all_other_slots_are_full(ring, threads):
    error, memory = OSError("the disk is gone"), slots(3)

    def fill(step, slot):
        if step == 2:
            until(lambda: memory[:2] == [[0], [1]])
            raise error
        note(step, slot)

    source = ring(memory, fill, range(20), threads)
    until(
        lambda: not any(thread.is_alive() for thread in source._threads)
    )  # those that waited for a slot have ended too
    assert Caller(lambda: source.take(0)).ended().error is error  # at once, though step 0 is there


def test_an_error_of_a_later_step_ends_the_wait_for_an_earlier_one(ring):
    go, error = threading.Event(), OSError("the disk is gone")

    def fill(step, slot):
        if step == 1:
            raise error
        go.wait(PATIENCE)

    source = ring(slots(3), fill, range(20), 2)
    assert Caller(lambda: source.take(0)).ended().error is error
    go.set()


# ---- the end ----


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [1, 3])
def test_close_ends_threads_that_wait_for_a_slot(ring, threads, count):
    filled = []
    source = ring(slots(count), lambda step, slot: filled.append(step), range(100), threads)
    until(lambda: len(filled) == count)
    Caller(source.close).ended()
    assert not any(thread.is_alive() for thread in source._threads)
    assert len(filled) == count


def test_close_lets_a_thread_finish_what_it_fills(ring):
    go, filled = threading.Event(), []

    def fill(step, slot):
        go.wait(PATIENCE)
        filled.append(step)

    source = ring(slots(3), fill, range(100), 1)
    closer = Caller(source.close)
    time.sleep(0.01)
    assert closer.is_alive()
    go.set()
    closer.ended()
    assert filled == [0]


def test_close_after_the_last_step_and_again(ring):
    source = ring(slots(2), note, range(3), 2)
    for step in range(3):
        source.take(step)
        source.give_back(step)
    until(lambda: not any(thread.is_alive() for thread in source._threads))
    Caller(source.close).ended()
    Caller(source.close).ended()


# ---- stress ----

FREE = -1


def stress(
    kind: type[SlotRing], threads: int, fill_pause: float, take_pause: float, held: int, steps: int = 2000
) -> int:
    """Return how many steps' slots held wrong data between take() and give_back(), which spoils them.

    held: slots taken at once.
    """
    memory = [np.full(64, FREE) for _ in range(held + 3)]
    busy = [threading.Lock() for _ in memory]
    wrong = []

    def pause(longest: float) -> None:
        if random.random() < 0.2:
            time.sleep(random.uniform(0, longest))

    def fill(step, slot):
        k = step % len(memory)
        assert slot is memory[k]
        if not busy[k].acquire(blocking=False):  # another thread fills it
            wrong.append(step)
            return
        if (slot != FREE).any():
            wrong.append(step)
        slot[:32] = step
        pause(fill_pause)
        slot[32:] = step
        busy[k].release()

    def look(step):
        if (memory[step % len(memory)] != step).any():
            wrong.append(step)

    ring = kind(memory, fill, range(steps), threads)
    try:
        for step in range(steps + held - 1):
            if step < steps:
                ring.take(step)
                look(step)
                pause(take_pause)
            if (oldest := step - held + 1) >= 0:
                look(oldest)
                memory[oldest % len(memory)][:] = FREE
                ring.give_back(oldest)
    finally:
        ring.close()
    return len(wrong)


RACES = pytest.mark.parametrize(
    ("fill_pause", "take_pause"), [(0, 5e-4), (5e-4, 0), (2e-4, 2e-4)], ids=["slow consumer", "slow producer", "both"]
)


@RACES
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("held", [1, 2])
def test_no_live_slot_is_overwritten(threads, held, fill_pause, take_pause):
    assert in_time(lambda: stress(SlotRing, threads, fill_pause, take_pause, held)) == 0


class Hasty(SlotRing):
    """Takes a slot for given back when the step before it is."""

    def give_back(self, step):
        super().give_back(step + 1)


class Overtaking(SlotRing):
    """Takes a slot for given back when it is taken."""

    def take(self, step):
        slot = super().take(step)
        self.give_back(step)
        return slot


class Crowded(SlotRing):
    """Counts one slot more than there are."""

    def _claim(self):
        with self._changed:
            self._changed.wait_for(lambda: self._ended() or self._next_step <= self._oldest + len(self._slots))
            if self._ended():
                return None
            self._next_step += 1
            return self._next_step - 1


@pytest.mark.parametrize("kind", [Hasty, Overtaking, Crowded])
def test_the_stress_finds_a_slot_that_is_given_back_too_early(kind):
    assert in_time(lambda: stress(kind, threads=4, fill_pause=0, take_pause=5e-4, held=1, steps=300)) > 0
