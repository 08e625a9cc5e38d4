"""The page: one HTML file that loads nothing. Text is escaped, and no script but page.js may run."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime
from importlib import resources

from rdn_fast import __version__
from rdn_fast.files import Kind
from rdn_fast.report.charts import charts
from rdn_fast.report.pictures import pictures, side_by_side
from rdn_fast.report.read import Run
from rdn_fast.report.tables import chip, measured, settings, starts, summary
from rdn_fast.report.words import words

_MARK = "<!doctype html><!-- rdn-fast report -->"
KIND = Kind("a page of rdn-fast report", lambda head: head.startswith(_MARK.encode()))


def page(runs: list[Run]) -> bytes:
    """Return the page of these runs as a file."""
    style, script = (resources.files(__package__).joinpath(f"page.{end}").read_text("utf-8") for end in ("css", "js"))
    names = ", ".join(run.name for run in runs)
    parts = [
        summary(runs),
        charts(runs),
        side_by_side(runs),
        *(pictures(run, chip(i, runs)) for i, run in enumerate(runs)),
        measured(runs),
        settings(runs),
        starts(runs),
    ]
    made = f"rdn-fast {__version__}, {datetime.now().isoformat(' ', 'minutes')}"
    return f"""{_MARK}
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline';
 script-src '{_digest(script)}'">
<title>{words(names)} – rdn-fast report</title>
<style>{style}</style>
</head>
<body>
<header><h1>Training report: {words(names)}</h1><p>{words(made)}</p></header>
<main>
{"".join(parts)}
</main>
<script>{script}</script>
</body>
</html>
""".encode(errors="replace")


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
