"""The tables of an evaluation: for the terminal, and as JSON, CSV and markdown."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rdn_fast.files import finite
from rdn_fast.terminal import print_table

_HEADINGS = {"psnr_y": "PSNR-Y", "psnr_y_compat": "PSNR-Y ref.", "ssim_y": "SSIM-Y"}
_COLUMNS = {prefix + key: heading for prefix in ("", "bicubic_") for key, heading in _HEADINGS.items()}
_NOTE = "PSNR-Y: canonical (rounded to uint8, borders cropped). ref.: as yjn870's code and the Ascend port print it."


def show(report: dict) -> None:
    """Print the table of each set; of several also the one of their means."""
    for evaluated in report["sets"]:
        table = Table(
            title=escape(f"{evaluated['name']}, x{report['scale']}, {Path(report['weights']).name}"),
            title_justify="left",
        )
        table.add_column("image")
        for key, heading in _COLUMNS.items():
            table.add_column("bicubic PSNR-Y" if key == "bicubic_psnr_y" else heading, justify="right")
        for row in evaluated["images"]:
            table.add_row(escape(row["name"]), *_shown(row, _COLUMNS))
        table.add_section()
        table.add_row("mean", *_shown(evaluated["mean"], _COLUMNS))
        print_table(table)
    if len(report["sets"]) > 1:
        print_table(_means(report))
    print(_NOTE)


def as_json(report: dict) -> str:
    return json.dumps(finite(report), indent=1) + "\n"


def as_csv(report: dict) -> str:
    """A row for each image, and for each set one called mean; numbers in full."""
    file = io.StringIO()
    writer = csv.DictWriter(file, ["set", "image", *_COLUMNS], lineterminator="\n")
    writer.writeheader()
    for evaluated in report["sets"]:
        for row in (*evaluated["images"], {"name": "mean", **evaluated["mean"]}):
            writer.writerow({"set": evaluated["name"], "image": row["name"], **{key: row[key] for key in _COLUMNS}})
    return file.getvalue()


def as_markdown(report: dict) -> str:
    """The means of all sets as a model's README shows them, under a line about the model."""
    table, file = _means(report), io.StringIO()
    table.title, table.box = None, box.MARKDOWN
    Console(file=file, width=1000, color_system=None).print(table)
    return f"{Path(report['weights']).name}: {about(report)}\n\n{file.getvalue().strip()}\n\n{_NOTE}\n"


def about(report: dict) -> str:
    """The model in a line."""
    ensemble = ", self-ensemble of 8" if report["self_ensemble"] else ""
    return f"{report['model']}, {report['parameters'] / 1e6:.2f} M parameters, {report['precision']}{ensemble}"


def _means(report: dict) -> Table:
    table = Table(title="means", title_justify="left")
    table.add_column("set")
    table.add_column("images", justify="right")
    keys = [prefix + key for key in _HEADINGS for prefix in ("bicubic_", "")]
    for key in keys:
        table.add_column(("bicubic " if key.startswith("bicubic_") else "RDN ") + _COLUMNS[key], justify="right")
    for evaluated in report["sets"]:
        table.add_row(escape(evaluated["name"]), str(len(evaluated["images"])), *_shown(evaluated["mean"], keys))
    return table


def _shown(row: dict, keys) -> list[str]:
    return [f"{row[key]:.4f}" if "ssim" in key else f"{row[key]:.2f}" for key in keys]
