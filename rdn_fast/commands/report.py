"""`rdn-fast report`: one HTML page of one or several training runs."""

from __future__ import annotations

from pathlib import Path

from rdn_fast.errors import UserError
from rdn_fast.files import write_result
from rdn_fast.report.page import KIND, page
from rdn_fast.report.read import read_run
from rdn_fast.terminal import bytes_in_words, print_line


def report(runs: list[str], output: str | None = None) -> None:
    """Write the page of these outputs folders. output: by default report.html in the folder, if there is one only.

    Raises UserError.
    """
    if output is None and len(runs) > 1:
        raise UserError("-o FILE.html is missing: with several runs, say where their page goes")
    file = Path(output) if output is not None else Path(runs[0]) / "report.html"
    read = [read_run(folder) for folder in runs]
    short = [Path(folder).name for folder in runs]
    if len(runs) > 1 and all(short) and len({*short}) == len(runs):
        for run, name in zip(read, short, strict=True):
            run.name = name
    content = page(read)
    name = f"-o {file}" if output is not None else str(file)
    write_result(file, content, name, KIND)
    print_line(f"look at: {file} ({bytes_in_words(len(content))})")
    for run in read:
        for note in run.notes:
            print_line(f"{run.name}: {note}")
