"""What a kind of trial is, and how a trial tells that the program kept its promise."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READ, REFUSED, SAME = "read", "refused in one line", "same bytes"


class Broken(AssertionError):
    """The program broke its promise. The text says how."""


@dataclass(frozen=True)
class Kind:
    """A kind of trial: what it promises, how many trials a whole campaign makes, and the function that makes one."""

    name: str
    promise: str
    trials: int
    run: Callable[[Any, int, Path], str]
    """run(made, seed, folder) -> outcome. Raises Broken, or anything else, when the promise is broken.

    made: what prepare() returned. seed: decides all that is drawn. folder: empty, for the trial's files.
    """
    prepare: Callable[[Path], Any] = lambda folder: None
    """prepare(folder) -> made. Called once in each worker; files that take long to make are kept in the folder."""
    short: Callable[[Any, int, Path], str] | None = None  # a cheaper run() for the tests
    batch: int = 1  # trials of one worker process
    cpu_seconds: int = 60  # of the worker; a trial that takes longer hangs
    seconds: int = 900  # wall time, where a trial waits for processes of its own
    bounded: bool = False  # the worker bounds its own memory; not where it starts processes
    needs: Callable[[], str | None] = lambda: None
    """needs() -> why such trials cannot be made here, or None."""
    drawn: bool = True  # any seed is a trial; otherwise 0 .. trials - 1 number the cases
    weight: int = 1  # how much one trial counts: a run with five kills counts five

    @property
    def seeds(self) -> range:
        return range(-(-self.trials // self.weight))


def require(true: object, words: str) -> None:
    """Raise Broken with these words unless `true` is."""
    if not true:
        raise Broken(words)


def command_line(*arguments) -> tuple[int, str, str]:
    """Run `rdn-fast ...` in this process. Return exit code, stdout and stderr."""
    from rdn_fast.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in arguments])
    return code, out.getvalue(), err.getvalue()


def require_one_line(code: int, err: str, *words: object) -> None:
    """Raise Broken unless a command ended by an error as documented: exit code 1 or 2, one line with these words."""
    require(code in (1, 2), f"exit code {code}: {err}")
    kind = {1: "failed", 2: "error"}[code]
    require(
        err.startswith(f"rdn-fast: {kind}: ") and err.endswith("\n") and err.count("\n") == 1, f"not one line: {err}"
    )
    for word in words:
        require(str(word) in err, f"does not name {word}: {err}")
