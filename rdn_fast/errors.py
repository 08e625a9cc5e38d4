"""How a command ends other than well. Everything else is a bug and keeps its traceback."""

import signal

RETRY = 75  # sysexits' EX_TEMPFAIL: how a rank ends that did no wrong that is known; its launcher may start all of them anew


class UserError(Exception):
    """A mistake the user can mend: one line naming the file or flag and the remedy; exit code 2."""


class Stopped(Exception):
    """A run that was asked to stop by signal `number`, and has saved; exit code 128 + number."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Failure(Exception):
    """Work that cannot go on (diverged, disk full, a result that is wrong): one line; exit code 1, what was written stays whole."""

    code = 1


class LostContact(Failure):
    """Another rank has ended or does not answer."""

    code = RETRY


def one_line(error: BaseException) -> str:
    """Return an error's text as one line of at most 200 characters, or the name of its type where it has no text."""
    return " ".join(str(error).split())[:200] or type(error).__name__
