"""A ring of reusable slots that threads fill ahead of time: step k uses slot k % slots until it is given back."""

from __future__ import annotations

import threading
from collections.abc import Callable


class SlotRing:
    """Runs fill(step, slot) for every step, at most as many steps ahead as slots are free.

    Steps are taken and given back in order. With 0 threads take() fills.
    An exception of fill() is raised by the next take(), even if it belongs to a later step.
    """

    def __init__(self, slots: list, fill: Callable, steps: range, threads: int):
        self._slots, self._fill, self._stop = slots, fill, steps.stop
        self._next_step = steps.start  # the next one to fill
        self._oldest = steps.start  # the oldest one whose slot is in use
        self._filled: set[int] = set()
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()  # guards all of the above
        self._threads = [
            threading.Thread(target=self._work, name=f"rdn-fast fill {i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def take(self, step: int):
        """Wait until the step's slot is filled. Return the slot."""
        slot = self._slots[step % len(self._slots)]
        if not self._threads:
            self._fill(step, slot)
            return slot
        if step not in self._filled or self._error is not None:  # else there is nothing to wait for, nor a lock to take
            with self._changed:
                self._changed.wait_for(lambda: step in self._filled or self._error is not None)
            if self._error is not None:
                raise self._error
        self._filled.remove(step)  # by this thread alone
        return slot

    def ready(self, step: int) -> bool:
        """Return whether take(step) would return without waiting."""
        return step in self._filled

    def give_back(self, step: int) -> None:
        """Allow the step's slot to be overwritten."""
        with self._changed:
            self._oldest = step + 1
            self._changed.notify()  # one slot serves one thread

    def close(self) -> None:
        """Stop and join the threads. They finish the slots that they are filling."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        try:
            while (step := self._claim()) is not None:
                self._fill(step, self._slots[step % len(self._slots)])
                with self._changed:
                    self._filled.add(step)
                    self._changed.notify_all()
        except BaseException as error:  # any end of this thread must reach the one that waits in take()
            with self._changed:
                self._error = self._error or error
                self._closed = True
                self._changed.notify_all()

    def _claim(self) -> int | None:
        """Wait for a free slot. Return the step to fill into it; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended() or self._next_step < self._oldest + len(self._slots))
            if self._ended():
                return None
            self._next_step += 1
            return self._next_step - 1

    def _ended(self) -> bool:
        return self._closed or self._next_step == self._stop
