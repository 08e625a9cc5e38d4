"""The file that `rdn-fast doctor --ascend-report` writes: Markdown with tables, and all rows as JSON, a line each.

What comes from the machine loses its folders outside of the system's, and the names of user and host.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from rdn_fast import __version__
from rdn_fast.files import Kind
from rdn_fast.terminal import clock, printable

Row = dict[str, object]
_TITLE = "# rdn_fast on Ascend: what `rdn-fast doctor --ascend-report` found"
KIND = Kind("a report of rdn-fast doctor --ascend-report", lambda head: head.startswith(_TITLE.encode()))
_HEADINGS = {
    "versions": "Versions",
    "card": "Card",
    "library": "Compiler and library of the fused kernels",
    "compilation": "Compiling the fused kernels",
    "implementations": "Implementations of the dense block, after their self-tests",
    "timings": "Timings of one dense block, one implementation after the other: a few percent may be chance",
    "step": "A training step of the whole model, and where torch_npu's profiler saw its time go",
}
# A path that is not the system's: its folders may tell who works there, and on what.
_OWN_PATH = re.compile(r"(?<![\w~./-])/(?!(?:usr|opt|etc|dev|lib|lib64|proc|sys)/)(?:[^/\s'\"|]+/)+(?=[^/\s'\"|])")


def page(parts: Iterable, seconds: float, state: str) -> str:
    """Return the file's text. parts: ascend_report.Part, in order. state: in words, whether the report is complete."""
    parts = list(parts)
    lines = [_TITLE, ""]
    lines += [f"rdn_fast {__version__}, {time.strftime('%Y-%m-%d', time.gmtime())}, {clock(seconds)}, {state}.", ""]
    lines += [
        "Attach this file to an issue. Names of user, host and folders were taken out; look through it first.",
        "",
    ]
    lines += _table({"part": part.title, "s": round(part.seconds), "result": part.state} for part in parts)
    for function, group in groupby(sorted(parts, key=_order), key=lambda part: part.function):
        if rows := [row for part in group for row in part.rows]:
            lines += ["", f"## {_HEADINGS[function]}"]
            for _, alike in groupby(rows, key=lambda row: next(iter(row))):
                lines += ["", *_table(alike)]
    lines += ["", "## All rows", "", "```json"]
    lines += [json.dumps(_clean({"part": part.title, **row})) for part in parts for row in part.rows]
    return "\n".join([*lines, "```", ""])


def _order(part) -> int:
    return list(_HEADINGS).index(part.function)


def _table(rows: Iterable[Row]) -> list[str]:
    """Return a Markdown table with the columns of all rows."""
    rows = [_clean(row) for row in rows]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, ["---"] * len(columns), *([_cell(row.get(name, "")) for name in columns] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in cells]


def _cell(value: object) -> str:
    text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    return "<br>".join(printable(line).replace("|", "\\|") for line in text.split("\n"))


def _clean(row: Row) -> Row:
    return {name: anonymous(value) if isinstance(value, str) else value for name, value in row.items()}


def anonymous(text: str) -> str:
    """Return the text without the user's home, folders that are not the system's, and the names of user and host."""
    for word, stands_for_it in _private().items():
        text = re.sub(rf"(?<![\w-]){re.escape(word)}(?![\w-])", stands_for_it, text)
    return _OWN_PATH.sub(".../", text)


def _private() -> dict[str, str]:
    """Return the words that tell who and where: {word: what stands for it}, homes first, since they hold the user."""
    homes, users, host = [os.environ.get("HOME", "")], [], platform.node()
    with suppress(RuntimeError):  # no home
        homes.append(str(Path.home()))
    with suppress(OSError, KeyError, ImportError):  # no user of that number
        users.append(getpass.getuser())
    users += [os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")]
    hosts = [host, host.partition(".")[0], os.environ.get("HOSTNAME", "")]
    words = {home.rstrip("/"): "~" for home in homes} | dict.fromkeys(hosts, "HOST") | dict.fromkeys(users, "USER")
    return {word: stands for word, stands in words.items() if word not in ("", "root", "localhost")}
