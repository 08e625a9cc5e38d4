"""Waiting for other ranks: an error of the wait is told from all other errors, and how long the wait took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rdn_fast import devices

# Texts of this rank's own errors where it waits: collectives that do not fit together, or a network interface that is
# not there; a port that is taken.
_OWN = "enforce fail", "failed to listen"


class NoAnswer(RuntimeError):
    """A collective has failed since another rank has gone or does not answer."""

    def __init__(self, error: RuntimeError, seconds: float):
        """seconds: since the collective began."""
        super().__init__(str(error))
        self.seconds = seconds


def is_own(error: RuntimeError) -> bool:
    """Return whether an error that was raised where this rank waits is its own: no other rank has caused it."""
    of_device = devices.is_out_of_memory(error) or devices.is_device_fault(error)
    return of_device or any(text in str(error) for text in _OWN)


@contextmanager
def waiting(since: float | None = None) -> Iterator[None]:
    """Raise NoAnswer for an error of a collective in the block. Other errors pass.

    Every wait for a collective belongs in such a block: the texts of gloo's errors do not tell them from others. since:
    when the collective began, or earlier, of time.monotonic(); None: now.
    """
    start = time.monotonic() if since is None else since
    try:
        yield
    except RuntimeError as error:
        if is_own(error):
            raise
        raise NoAnswer(error, time.monotonic() - start) from error
