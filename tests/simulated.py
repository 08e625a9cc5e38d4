"""A simulated accelerator: a side stream and a compute stream that postpone all work until something waits for it.

A real device may work at any time between the earliest and the latest that streams and events allow. Here the compute
stream works as late as it can. Copies are made as late as they can be or, if `eager`, as early. Code that is right
under both waits for everything it has to wait for.
"""

from __future__ import annotations

from collections.abc import Callable


class Event:
    """Is complete when the side stream has made its first `copies` copies."""

    def __init__(self, side: SimulatedSideStream, copies: int):
        self.side, self.copies = side, copies

    def synchronize(self) -> None:
        """Make the host wait."""
        self.side.copy(self.copies)


class SimulatedSideStream:
    """Stands for devices.SideStream (run, join), the compute stream (compute), and the host's wait for it (flush)."""

    def __init__(self, eager: bool):
        self._eager = eager
        self._copies: list[tuple[int, Callable]] = []  # what must have been computed before, and the copy
        self._computing: list[Callable] = []
        self._copied = self._computed = 0

    def run(self, work: Callable[[], None]) -> Event:
        self._copies.append((self._computed_before(), work))
        self._copy_early()
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
        """Make the first `count` copies, and before each what it waits for."""
        while self._copied < count:
            before, work = self._copies[self._copied]
            self._compute(before)
            if self._copied < count:  # not made meanwhile
                self._copied += 1
                work()

    def _compute(self, count: int) -> None:
        while self._computed < count:
            self._computed += 1
            self._computing[self._computed - 1]()
            self._copy_early()

    def _copy_early(self) -> None:
        while self._eager and self.pending and self._copies[self._copied][0] <= self._computed:
            self._copied += 1
            self._copies[self._copied - 1][1]()

    # What mutants override.

    def _computed_before(self) -> int:
        """Return how much must have been computed before a copy that is queued now."""
        return len(self._computing)

    def _event(self) -> Event:
        return Event(self, len(self._copies))
