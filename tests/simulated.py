"""A simulated accelerator: a copy queue and a computing queue that do nothing of what they are asked before they must.

A real device may do what it is asked at any time between the earliest and the latest that streams and events allow. Here the
computing queue works as late as it can; copies are made as late as they can, or (`eager`) as early. What is right under both
waits for all that it has to wait for.
"""

from __future__ import annotations

from collections.abc import Callable


class Event:
    """Is over when the lane has made its first `copies` copies."""

    def __init__(self, lane: SimulatedLane, copies: int):
        self.lane, self.copies = lane, copies

    def synchronize(self) -> None:
        """The host waits."""
        self.lane.copy(self.copies)


class SimulatedLane:
    """What device.Lane is (run, join), the computing queue beside it (compute), and the host's wait for that (flush)."""

    def __init__(self, eager: bool):
        self._eager = eager
        self._copies: list[tuple[int, Callable]] = []  # how much must have been computed before, and the copy
        self._computing: list[Callable] = []
        self._copied = self._computed = 0

    def run(self, work: Callable[[], None]) -> Event:
        self._copies.append((self._behind(), work))
        self._hurry()
        return self._event()

    def join(self, done: Event) -> None:
        self._computing.append(lambda: self.copy(done.copies))

    def compute(self, work: Callable[[], None]) -> None:
        self._computing.append(work)

    def flush(self) -> None:
        self._compute(len(self._computing))

    @property
    def pending(self) -> int:
        """Copies that have not been made."""
        return len(self._copies) - self._copied

    def copy(self, count: int) -> None:
        """Make the first `count` copies, and before them what they wait for."""
        while self._copied < count:
            behind, work = self._copies[self._copied]
            self._compute(behind)
            if self._copied < count:  # not made meanwhile
                self._copied += 1
                work()

    def _compute(self, count: int) -> None:
        while self._computed < count:
            self._computed += 1
            self._computing[self._computed - 1]()
            self._hurry()

    def _hurry(self) -> None:
        while self._eager and self.pending and self._copies[self._copied][0] <= self._computed:
            self._copied += 1
            self._copies[self._copied - 1][1]()

    # What mutants change.

    def _behind(self) -> int:
        """How much must have been computed before the copy that is asked for now."""
        return len(self._computing)

    def _event(self) -> Event:
        return Event(self, len(self._copies))
