"""Markdown tables, the cells of result rows, and the columns that several cases have."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.case import RDN_B_SHAPE, Chart, Column
from bench.results import Row


def markdown(headings: list[str], rows: list[list[str]], words: dict[str, str] | None = None) -> str:
    """Return a Markdown table; a heading or cell that is a key of `words` becomes its value."""
    words, table, file = words or {}, Table(box=box.MARKDOWN), io.StringIO()
    for heading in headings:
        table.add_column(Text(words.get(heading, heading)))
    for cells in rows:
        table.add_row(*(Text(words.get(cell, cell)) for cell in cells))
    Console(file=file, width=10_000, color_system=None).print(table)
    return file.getvalue().strip()


def number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def three_digits(value: float | None) -> str:
    """Return three digits, and all before the point: never 4.34e+03."""
    return number(value, "{:.3g}" if value is None or value < 999.5 else "{:.0f}")


def column(heading: str, name: str, form: str) -> Column:
    """Return the Column of a figure of results.Row."""
    return Column(heading, lambda row: number(getattr(row, name), form))


def when(row: Row) -> str:
    """Return date and commit of a row; the commit is empty outside a checkout."""
    return f"{row.date[:10]} {row.commit}".strip()


def unsteady(row: Row) -> str:
    return " (unsteady)" if row.shaky else ""


def _images(row: Row) -> str:
    window = "" if row.seed_images_s is None else f" (seed window {three_digits(row.seed_images_s)})"
    return three_digits(row.images_s) + window


def _recipe(row: Row) -> str:
    words = f"{row.recipe} ({row.note})" if row.note.endswith(" workers") else row.recipe
    return (f"**{words}**" if row.recipe.startswith("rdn_fast") else words) + unsteady(row)


BATCH = Column("batch", lambda row: str(row.batch))
RECIPE = Column("recipe", _recipe)
DTYPE = Column("dtype", lambda row: row.dtype)
GFLOPS = column("GFLOP/s", "gflops", "{:.0f}")
CEILING = column("of the ceiling", "ceiling_share", "{:.0%}")
VS_REFERENCE = column("vs reference", "vs_reference", "{:.2f}x")
VS_STOCK = column("vs stock", "vs_stock", "{:.2f}x")
IMAGES = Column("images/s", _images)
SPEEDS = (BATCH, RECIPE, DTYPE, IMAGES, GFLOPS, CEILING, VS_REFERENCE, VS_STOCK)  # of the block bench:speeds


def direct_chart(figure: str, title: str, shows: Callable[[Row], bool]) -> Chart:
    """Return a chart of GFLOP/s under the ceilings."""
    unit = "GFLOP/s, counted as direct convolutions"
    return Chart(figure, title, "figures", "gflops", unit, shows, ceilings=True)


def is_rdn_b(row: Row) -> bool:
    return row.shape.startswith(RDN_B_SHAPE)


MODEL_SPEEDS = {
    "block": "speeds",
    "columns": SPEEDS,
    "shows": lambda row: is_rdn_b(row) and not row.recipe.startswith("impl "),
    "chart": direct_chart("model", "rdn-b", is_rdn_b),
}
