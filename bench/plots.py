"""All figures: bars of speeds and curves as SVG whose text is text. The same data give the same bytes.

A figure of this module holds a digest of what it shows and of this file, which tells whether it is stale.
"""

from __future__ import annotations

import hashlib
import json
import textwrap
from pathlib import Path
from typing import NamedTuple

COLOURS = {"reference": "#9a9a9a", "stock": "#5b8db8", "rdn_fast": "#d1622b", "impl": "#ecb593"}
OTHER, INK = "#7aa37a", "#333333"
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # text that crosses lines
STYLE = {
    "svg.hashsalt": "rdn_fast",
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
}


class Bar(NamedTuple):
    """A recipe's speed: the median, and the slowest and fastest round."""

    label: str
    recipe: str
    value: float
    least: float
    most: float


class Panel(NamedTuple):
    """One case: its bars, their unit, and the ceilings of their dtypes in that unit."""

    title: str
    bars: list[Bar]
    unit: str
    ceilings: dict[str, float]


class Curve(NamedTuple):
    """Lines over one quantity: {label: (x, y)}."""

    lines: dict[str, tuple[list[float], list[float]]]
    x: str
    y: str


class Figure(NamedTuple):
    """A title and panels of one kind, two in a row."""

    title: str
    panels: list[Panel] | list[Curve]


def digest(figure: Figure) -> str:
    """Return a digest of what is drawn and of the code that draws it."""
    return hashlib.sha256(json.dumps(figure).encode() + Path(__file__).read_bytes()).hexdigest()[:16]


def is_current(path: Path, figure: Figure) -> bool:
    """Return whether the SVG was drawn from just this figure."""
    return path.is_file() and f"digest {digest(figure)}" in path.read_text(encoding="utf-8")


def canvas(size: tuple[float, float], rows: int = 1, columns: int = 1, heights: list[float] | None = None):
    """Return a matplotlib figure of this module's style and its axes, [rows, columns]; `size` in inches."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams.update(STYLE)
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=size, height_ratios=heights, squeeze=False, layout="constrained")


def save(figure, path: Path, description: str | None = None) -> None:
    """Write a matplotlib figure as SVG, or as what the path's suffix says, and close it."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(exist_ok=True)
    metadata = {"Date": None, "Description": description} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=metadata, dpi=130)
    plt.close(figure)


def draw(path: Path, figure: Figure) -> None:
    """Write the figure with its digest."""
    panels, columns = figure.panels, min(2, len(figure.panels))
    heights = [1 + 0.3 * len(panel.bars) if isinstance(panel, Panel) else 3 for panel in panels]
    heights = [max(heights[i : i + columns]) for i in range(0, len(panels), columns)]
    drawn, axes = canvas((5.2 * columns, 0.25 + sum(heights)), len(heights), columns, heights)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for panel, ax in zip(panels, axes.flat, strict=False):
        (_bars if isinstance(panel, Panel) else _curve)(panel, ax)
    drawn.suptitle(textwrap.fill(figure.title, 60 * columns), fontsize=10.5, x=0.01, ha="left", weight="bold")
    save(drawn, path, f"digest {digest(figure)}")


def _bars(panel: Panel, ax) -> None:
    bars, places = panel.bars, range(len(panel.bars))
    spread = [[bar.value - bar.least for bar in bars], [bar.most - bar.value for bar in bars]]
    colours = [COLOURS.get(bar.recipe.split()[0], OTHER) for bar in bars]
    ends = {"ecolor": INK, "elinewidth": 0.9, "capsize": 2}
    ax.barh(places, [bar.value for bar in bars], color=colours, height=0.72, xerr=spread, error_kw=ends)
    limit = 1.16 * max(*(bar.most for bar in bars), *panel.ceilings.values(), 0)
    for place, bar in zip(places, bars, strict=True):
        ax.text(bar.most + 0.012 * limit, place, f"{bar.value:,.0f}", va="center", fontsize=8.5, bbox=BEHIND)
    lowest, highest = min(panel.ceilings.values(), default=0), max(panel.ceilings.values(), default=0)
    for dtype, ceiling in panel.ceilings.items():
        ax.axvline(ceiling, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        words = f"ceiling, {dtype}" if len(panel.ceilings) > 1 else "ceiling"
        left = ceiling == lowest and 0 < highest - lowest < 0.25 * limit  # else they would overlap
        place, side = (-0.012, "right") if left else (0.012, "left")
        ax.text(ceiling + place * limit, -0.68, words, fontsize=7.5, va="center", ha=side, color=INK)
    ax.set_yticks(places, [bar.label for bar in bars])
    ax.set_ylim(len(bars) - 0.5, -0.95)
    ax.set_xlim(0, limit)
    ax.locator_params(axis="x", nbins=6)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel(panel.unit)
    ax.set_title(panel.title)
    ax.tick_params(axis="y", length=0)


def _curve(curve: Curve, ax) -> None:
    for (label, (x, y)), colour in zip(curve.lines.items(), (COLOURS["rdn_fast"], COLOURS["stock"]), strict=False):
        ax.plot(x, y, color=colour, linewidth=1.3, marker="o", markersize=2.6, label=label)
    ax.grid()
    ax.set_xlim(left=0)
    ax.set_xlabel(curve.x)
    ax.set_ylabel(curve.y)
    ax.legend(loc="lower right")
