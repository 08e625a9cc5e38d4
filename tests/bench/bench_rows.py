"""Made-up result rows, and Markdown tables in short."""

from __future__ import annotations

from bench.case import RDN_B_SHAPE
from bench.results import Row


def make_row(**values) -> Row:
    given = {
        "date": "2026-01-02T03:04:05",
        "commit": "abc",
        "command": "python -m bench.run 1p",
        "place": "cpu",
        "device": "Some CPU, 2 threads, AVX2",
        "threads": 2,
        "torch": "2.13.0",
        "rdn_fast": "0.1.0",
        "case": "training step",
        "recipe": "rdn_fast",
        "dtype": "float32",
        "precision": "default",
        "batch": 8,
        "shape": f"{RDN_B_SHAPE}, 32x32",
        "rounds": 3,
        "seconds": 2.0,
        "seconds_min": 1.75,
        "seconds_max": 2.25,
        "images_s": 4.0,
        "gflops": 300.0,
        "vs_reference": 2.5,
        "vs_stock": 1.5,
    }
    return Row(**given | values)


def short(markdown: str) -> str:
    """Return a text whose tables are not padded: `| a | b |`, `| --- | --- |`."""
    lines = []
    for line in markdown.splitlines():
        cells = [cell.strip() for cell in line[1:-1].split("|")] if line.startswith("|") else []
        cells = ["---" if set(cell) == {"-"} else cell for cell in cells]
        lines.append(f"| {' | '.join(cells)} |" if cells else line)
    return "\n".join(lines)
