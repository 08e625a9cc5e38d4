"""Exceptions that end a command in order, each with an exit code. Any other is a bug and keeps its traceback."""

import errno
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# sysexits' EX_TEMPFAIL: exit code of a rank that ended through no known fault of its own. The launcher may restart all.
RETRY = 75


class UserError(Exception):
    """A mistake that the user can mend. The text is one line with the file or flag and the remedy. Exit code 2."""


class Stopped(Exception):
    """A run that was stopped by signal `number` and has saved a checkpoint. Exit code 128 + number."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would raise KeyboardInterrupt."""


class Failure(Exception):
    """Work that cannot go on: diverged, disk full, a wrong result. The text is one line. Exit code 1.

    Files that were written before stay whole.
    """

    code = 1


class LostContact(Failure):
    """Another rank has ended or does not answer."""

    code = RETRY


@contextmanager
def naming_flag(flag: str, path: str | Path | None = None) -> Iterator[None]:
    """Prefix the text of a UserError with the flag that caused it. With a path: only if it begins with `path: `."""
    try:
        yield
    except UserError as error:
        if path is None or str(error).startswith((f"{path}: ", f"{Path(path)}: ")):
            raise UserError(f"{flag} {error}") from None
        raise


def why_no_file(path: str | Path) -> str | None:
    """Return why there is no regular file to open at the path: "no such file", "is a pipe", ...; None when there is.

    Others are not to be opened: a pipe waits for its writer. What may be opened can still be unreadable.
    """
    mode, flaw = _mode(path)
    if mode is None or stat.S_ISREG(mode):
        return flaw
    if stat.S_ISDIR(mode) and not os.access(path, os.R_OK | os.X_OK):
        return "is a folder that cannot be read"
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return f"is {kinds.get(stat.S_IFMT(mode), 'a device')}"


def why_no_folder(path: str | Path) -> str | None:
    """Return why there is no folder at the path: "no such folder", "is a file", ...; None when there is."""
    mode, flaw = _mode(path)
    if mode is None:
        return "no such folder" if flaw == "no such file" else flaw
    return None if stat.S_ISDIR(mode) else "is a file"


def _mode(path: str | Path) -> tuple[int | None, str | None]:
    """Return the mode of what is at the path, or None and why it cannot be told."""
    try:
        return os.stat(path).st_mode, None
    except (FileNotFoundError, NotADirectoryError):
        return None, "is a link to nothing" if os.path.islink(path) else "no such file"
    except OSError as error:  # a name that is too long, a folder that may not be entered, a link to itself
        return None, f"cannot be read ({error.strerror})"
    except ValueError as error:  # a null byte; characters that the system's encoding lacks
        return None, f"cannot be a name ({error})"


def cannot_write(error: OSError, what: str = "place") -> str:
    """Return why a file or a folder cannot be written, and the remedy. what: to be chosen instead."""
    reason = "a file has that name" if isinstance(error, FileExistsError) else error.strerror or one_line(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return f"cannot be written ({reason}); {'free some space or ' if full else ''}choose another {what}"


def one_line(error: BaseException) -> str:
    """Return an error's text as one line of at most 200 characters, or the name of its type where it has no text."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def what_failed(error: BaseException) -> str:
    """Return the line of an error's text that tells what failed, for errors of compilers.

    They quote code with a caret below it before they tell. Triton tells it in the error's cause where the code is of a
    function that the kernel calls. A line that ends in a colon introduces others: torch's first may name a backend.
    """
    while error.__cause__ is not None and str(error).rstrip().endswith("^"):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    begin = max((i for i, line in enumerate(lines, 1) if line == "^"), default=0)
    return next((line for line in lines[begin:] if not line.endswith(":")), lines[-1])
