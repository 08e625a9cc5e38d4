"""What a first look takes: `rdn-fast demo` in a new process and its dB over bicubic; each benchmark's own minutes."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path

from bench import process, tables
from bench.case import Case, Column, Gate
from bench.measure import Bench
from bench.timing import Times

DEMO, RUNS = "demo", "minutes"  # of the latter, measure.Bench writes one a run


def run(bench: Bench, command: str) -> None:
    """Write the wall seconds, imports and the making of the data included, and the gain that the demo prints."""
    print(f"\n{DEMO}, preset demo")
    with tempfile.TemporaryDirectory() as folder:
        words = ["demo", "--outputs-dir", Path(folder) / "demo", "--device", str(bench.device)]
        start = time.perf_counter()
        try:
            printed = process.run_module("rdn-fast demo", ["rdn_fast", *words])
        except RuntimeError as error:
            bench.fail(str(error))
            return
        seconds = time.perf_counter() - start
    gain = float(re.search(r"RDN is ([+-]\d+\.\d+) dB from bicubic", printed)[1])
    bench.row(DEMO, "rdn_fast", bench.default, 0, "preset demo", Times([seconds]), gain_db=gain)


CASE = Case(
    order=80,
    rows=(DEMO, RUNS),
    commands=("minutes", "all"),
    run=run,
    gates=(
        Gate("rdn-fast demo, seconds", DEMO, "seconds", 180, 120, at_most=True, shape=""),
        Gate("rdn-fast demo, dB over bicubic on unseen photographs", DEMO, "gain_db", 1.5, shape=""),
    ),
    block="minutes",
    columns=(
        Column("run", lambda row: f"`{row.command}`" if row.case == RUNS else "`rdn-fast demo`"),
        Column("minutes", lambda row: f"{row.seconds / 60:.1f}"),
        tables.column("over bicubic", "gain_db", "{:+.2f} dB"),
    ),
)
