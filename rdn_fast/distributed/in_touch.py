"""Contact between ranks that work apart for longer than a collective may take."""

from __future__ import annotations

import time
from collections.abc import Callable

from rdn_fast.distributed.process_group import PendingMax, Ranks
from rdn_fast.errors import Stopped

_SECONDS = 0.2  # between two exchanges of ranks that work


class InTouch:
    """Keeps ranks in touch while each does its own share of some work, and lets a signal to one of them stop all.

    Each rank calls poll() between the pieces of its share, and finish() after the last. The ranks exchange two numbers
    in the background: a signal to stop by, and whether any still works. A rank that waits in finish() gives up only
    when another one has not called poll() for process_group.TIMEOUT seconds, however long the whole work takes.
    """

    def __init__(self, ranks: Ranks, signal_now: Callable[[], int]):
        """signal_now: returns the signal that this rank is to stop by, 0 for none."""
        self._ranks, self._signal_now = ranks, signal_now
        self._pending: PendingMax | None = None
        self._next = 0.0  # time of the next exchange

    def poll(self) -> None:
        """Raise Stopped, on all ranks in the same exchange, when one of them is to stop. Waits for no other rank."""
        if self._ranks.world == 1:
            if number := self._signal_now():
                raise Stopped(number)
        elif self._pending is None and time.monotonic() >= self._next:
            self._begin(working=True)
        elif self._pending is not None and self._pending.is_over():
            self._end()

    def finish(self) -> None:
        """Wait until all ranks have finished. Raises Stopped as poll() does."""
        if self._ranks.world == 1:
            return
        anyone_works = True
        while anyone_works:
            if self._pending is None:
                self._begin(working=False)
            anyone_works = self._end()

    def _begin(self, working: bool) -> None:
        self._pending = self._ranks.begin_max(self._signal_now(), working)
        self._next = time.monotonic() + _SECONDS

    def _end(self) -> bool:
        """Wait for the exchange. Return whether any rank still worked when it began it."""
        number, anyone_works = self._pending.wait()
        self._pending = None
        if number:
            raise Stopped(number)
        return bool(anyone_works)
