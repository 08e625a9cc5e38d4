"""A ring of reusable slots, filled ahead of time by threads: step k's data is in slot k % slots until it is given back."""

from __future__ import annotations

import threading
from collections.abc import Callable


class SlotRing:
    """Runs fill(step, slot) for every step, at most as far ahead as slots have been given back.

    Steps are taken, and given back, in their order. With 0 threads the caller of take() fills. An exception of fill() is raised by
    the next take(), however early it comes. close() leaves no thread behind.
    """

    def __init__(self, slots: list, fill: Callable, steps: range, threads: int):
        self._slots, self._fill, self._stop = slots, fill, steps.stop
        self._claimed = self._free_from = steps.start  # the next step to be filled; the oldest whose slot is in use
        self._filled: set[int] = set()
        self._error: BaseException | None = None
        self._closed = False
        self._news = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"rdn-fast fill {i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def take(self, step: int):
        """The filled slot of the step, waiting for it if need be."""
        slot = self._slots[step % len(self._slots)]
        if not self._threads:
            self._fill(step, slot)
            return slot
        with self._news:
            self._news.wait_for(lambda: step in self._filled or self._error is not None)
            if self._error is not None:
                raise self._error
            self._filled.remove(step)
        return slot

    def ready(self, step: int) -> bool:
        """Whether take(step) would not wait."""
        return step in self._filled

    def give_back(self, step: int) -> None:
        """The slot of the step may be overwritten."""
        with self._news:
            self._free_from = step + 1
            self._news.notify_all()

    def close(self) -> None:
        """Stop the threads; what they are filling they finish."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        try:
            while (step := self._claim()) is not None:
                self._fill(step, self._slots[step % len(self._slots)])
                with self._news:
                    self._filled.add(step)
                    self._news.notify_all()
        except BaseException as error:  # whatever ended this thread, the one that waits must hear of it
            with self._news:
                self._error = self._error or error
                self._closed = True
                self._news.notify_all()

    def _claim(self) -> int | None:
        with self._news:
            self._news.wait_for(
                lambda: (
                    self._closed or self._claimed == self._stop or self._claimed < self._free_from + len(self._slots)
                )
            )
            if self._closed or self._claimed == self._stop:
                return None
            self._claimed += 1
            return self._claimed - 1
