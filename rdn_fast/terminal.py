"""Output for people: lines, a progress bar on a terminal and plain lines elsewhere, tables, durations, sizes."""

from __future__ import annotations

import re
import sys
import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

_PLAIN_SECONDS = 10.0  # between plain progress lines
# C0, DEL, C1, line separators, what changes the direction of writing, surrogates.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return the text of a line without control characters and surrogates, which names of files may hold.

    They become \n, \x1b or \u202e, and a byte of a name that is not UTF-8 becomes \xff.
    """
    return _CONTROLS.sub(_escape_character, text)


def _escape_character(found: re.Match) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # what Python makes of such a byte
        return f"\\x{code - 0xDC00:02x}"
    return found[0].encode("unicode_escape").decode()


def print_line(text: str) -> None:
    """Print one printable() line at once. All that is printed passes here, Bar or print_table()."""
    print(printable(text), flush=True)


class Bar:
    """Shows the progress of `total` steps, with an ETA. A context manager.

    done: steps that were finished before. quiet: print nothing, as ranks other than 0 do.
    """

    def __init__(self, label: str, total: int, done: int = 0, quiet: bool = False):
        self._label, self._total, self._done, self._quiet = label, total, done, quiet
        self._first, self._began, self._printed = done, time.monotonic(), time.monotonic()
        self._live = None
        if sys.stdout and sys.stdout.isatty() and not quiet:
            fixed = Column(no_wrap=True, min_width=8)  # on a narrow terminal the text is cut, not the ETA
            columns = (
                TextColumn("{task.description}"),
                BarColumn(12, table_column=Column(min_width=12)),
                MofNCompleteColumn(table_column=fixed.copy()),
                TimeRemainingColumn(table_column=fixed.copy()),
                TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            )
            self._live = Progress(*columns, console=Console(highlight=False), transient=True)
            self._task = self._live.add_task(label, total=total, completed=done, text="")

    def __enter__(self):
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_):
        if self._live:
            self._live.stop()

    def advance(self, text: str = "") -> None:
        """Count one more step as done. `text` is shown beside the bar."""
        self.set_done(self._done + 1, text)

    def set_done(self, done: float, text: str = "") -> None:
        """Set how many steps are done, as a fraction where a step is done in part. `text` is shown beside the bar."""
        self._done, text = done, printable(text)
        if self._live:
            self._live.update(self._task, completed=self._done, text=text)
        elif not self._quiet and time.monotonic() - self._printed >= _PLAIN_SECONDS:
            self._printed = time.monotonic()
            left = (self._printed - self._began) / (self._done - self._first) * (self._total - self._done)
            parts = f"{self._label} {int(self._done)}/{self._total}", text, f"ETA {clock(left)}"
            print_line("  ".join(filter(None, parts)))

    def say(self, line: str) -> None:
        """Print a line that stays, above the bar."""
        if self._live:
            self._live.console.print(printable(line), markup=False, soft_wrap=True)
        elif not self._quiet:
            print_line(line)


def cell(text: str) -> str:
    """Return the text of a table's cell or title: printable(), and nothing in it is rich's markup."""
    return escape(printable(text))


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal, or where there is none, 200 columns wide, so that no line is wrapped."""
    console = Console()
    console.print(table) if console.is_terminal else Console(width=200).print(table)


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def bytes_in_words(n: float) -> str:
    """Return a number of bytes as `12.3 MB`, or as `1.2 GB` from 1e9 bytes on."""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"
