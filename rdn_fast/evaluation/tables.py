"""The tables of an evaluation: for the terminal, and as JSON, CSV and markdown. `report`: as evaluate() returns it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from rdn_fast.data.degradation import OWNERS
from rdn_fast.files import finite
from rdn_fast.terminal import cell, print_line, print_table, printable

_HEADINGS = {"psnr_y": "PSNR-Y", "psnr_y_compat": "PSNR-Y ref.", "ssim_y": "SSIM-Y", "psnr_rgb": "PSNR-RGB"}
_COLUMNS = {prefix + key: heading for prefix in ("", "bicubic_") for key, heading in _HEADINGS.items()}
_SHOWN = [key for key in _COLUMNS if key != "bicubic_psnr_rgb"]  # where there is no room for all
_NOTE = "PSNR-Y: canonical (rounded to uint8, borders cropped). ref.: as yjn870's code and the Ascend port print it."


def print_report(report: dict) -> None:
    """Print a table per set, and if there are several, the table of their means."""
    for dataset in report["sets"]:
        title = f"{dataset['name']}, x{report['scale']}, {Path(report['weights']).name}, LR: {_made_by(dataset)}"
        table = Table(title=cell(title), title_justify="left")
        table.add_column("image")
        for key in _SHOWN:
            table.add_column("bicubic PSNR-Y" if key == "bicubic_psnr_y" else _COLUMNS[key], justify="right")
        for scores in dataset["images"]:
            table.add_row(cell(scores["name"]), *_in_words(scores, _SHOWN))
        table.add_section()
        table.add_row("mean", *_in_words(dataset["mean"], _SHOWN))
        print_table(table)
        if note := note_on_infinite(dataset):
            print_line(note)
    if len(report["sets"]) > 1:
        print_table(_means(report))
    print_line(_NOTE)
    print_line(_note_on_lr(report))


def note_on_infinite(dataset: dict) -> str | None:
    """Return a line that names the images of a report's set that have an infinite PSNR; None where none has."""
    names = [scores["name"] for scores in dataset["images"] if math.inf in scores.values()]
    if not names:
        return None
    some = f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''} ({len(names)} of {len(dataset['images'])})"
    return f"{dataset['name']}: infinite PSNR, of a result that equals HR, is left out of the means of PSNR: {some}"


def as_json(report: dict) -> str:
    """Return the report as JSON; null stands for infinity."""
    return json.dumps(finite(report), indent=1) + "\n"


def as_csv(report: dict) -> str:
    """Return CSV with a line per image, and per set one called mean; numbers in full."""
    file = io.StringIO()
    writer = csv.DictWriter(file, ["set", "image", *_COLUMNS, "lr_made_by"], lineterminator="\n")
    writer.writeheader()
    for dataset in report["sets"]:
        made_by = dataset["lr_made_by"] or ""
        for scores in (*dataset["images"], {"name": "mean", **dataset["mean"]}):
            columns = {key: scores[key] for key in _COLUMNS}
            writer.writerow({"set": dataset["name"], "image": scores["name"], **columns, "lr_made_by": made_by})
    return file.getvalue()


def as_markdown(report: dict) -> str:
    """Return the means of all sets as a markdown table, for a model's README, below a line about the model."""
    table, file = _means(report), io.StringIO()
    table.title, table.box = None, box.MARKDOWN
    Console(file=file, width=1000, color_system=None).print(table)
    notes = [
        _NOTE,
        _note_on_lr(report),
        *(printable(note) for each in report["sets"] if (note := note_on_infinite(each))),
    ]
    title = f"{printable(Path(report['weights']).name)}: {model_in_words(report)}"
    return "\n\n".join([title, file.getvalue().strip(), "\n".join(notes)]) + "\n"


def model_in_words(report: dict) -> str:
    ensemble = ", self-ensemble of 8" if report["self_ensemble"] else ""
    return f"{report['model']}, {report['parameters'] / 1e6:.2f} M parameters, {report['precision']}{ensemble}"


def _made_by(dataset: dict) -> str:
    return dataset["lr_made_by"] or "as the file has them"


def _note_on_lr(report: dict) -> str:
    """Return a line on how the LR images of each set were made, and whose bicubic stands beside the model."""
    sets: dict[str, list[str]] = {}
    for dataset in report["sets"]:
        sets.setdefault(_made_by(dataset), []).append(printable(dataset["name"]))
    ways = [made_by + (f" ({', '.join(names)})" if len(sets) > 1 else "") for made_by, names in sets.items()]
    return f"LR images: {'; '.join(ways)}. Enlarged by bicubic: {OWNERS[report['bicubic']]}."


def _means(report: dict) -> Table:
    table = Table(title="means", title_justify="left")
    table.add_column("set")
    table.add_column("images", justify="right")
    keys = [prefix + key for key in _HEADINGS for prefix in ("bicubic_", "") if prefix + key in _SHOWN]
    for key in keys:
        table.add_column(("bicubic " if key.startswith("bicubic_") else "RDN ") + _COLUMNS[key], justify="right")
    for dataset in report["sets"]:
        table.add_row(cell(dataset["name"]), str(len(dataset["images"])), *_in_words(dataset["mean"], keys))
    return table


def _in_words(scores: dict, keys: Iterable[str]) -> list[str]:
    return [f"{scores[key]:.4f}" if "ssim" in key else f"{scores[key]:.2f}" for key in keys]
