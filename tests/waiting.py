"""Waiting that ends: what hangs fails."""

import threading
import time
from collections.abc import Callable

PATIENCE = 300  # seconds after which something hangs, on a machine ten times slower than most, too


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(1e-4)


class Caller(threading.Thread):
    """call() in a thread of its own: its `result`, or the `error` that ended it."""

    def __init__(self, call: Callable):
        super().__init__(daemon=True)
        self.call, self.result, self.error = call, None, None
        self.start()

    def run(self):
        try:
            self.result = self.call()
        except BaseException as error:
            self.error = error

    def ended(self) -> "Caller":
        self.join(PATIENCE)
        assert not self.is_alive(), "it hangs"
        return self


def in_time(call: Callable):
    """What call() returns or raises."""
    caller = Caller(call).ended()
    if caller.error is not None:
        raise caller.error
    return caller.result
