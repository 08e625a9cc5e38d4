"""Bar charts of speeds and curves of training as SVG: the same bytes for the same rows, and a digest in the file that tells whether they are stale."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

COLOURS = {"reference": "#9a9a9a", "stock": "#5b8db8", "rdn_fast": "#d1622b", "row": "#ecb593"}
OTHER = "#7aa37a"


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
    """Of what is drawn, and of the code that draws it."""
    return hashlib.sha256(json.dumps(figure).encode() + Path(__file__).read_bytes()).hexdigest()[:16]


def is_current(path: Path, figure: Figure) -> bool:
    """Whether the SVG was drawn from just this figure."""
    return path.is_file() and f"digest {digest(figure)}" in path.read_text(encoding="utf-8")


def draw(path: Path, figure: Figure) -> None:
    """Write the SVG (or what the path's suffix says)."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "rdn_fast", "font.family": "DejaVu Sans", "font.size": 9})
    columns = min(2, len(figure.panels))
    rows = -(-len(figure.panels) // columns)
    height = max(1 + 0.34 * len(panel.bars) if isinstance(panel, Panel) else 3 for panel in figure.panels)
    size = 5.2 * columns, 0.25 + rows * height
    canvas, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat[len(figure.panels) :]:
        ax.remove()
    for panel, ax in zip(figure.panels, axes.flat, strict=False):
        (_bars if isinstance(panel, Panel) else _curve)(panel, ax)
        ax.spines[["top", "right"]].set_visible(False)
    canvas.suptitle(figure.title, fontsize=10.5, x=0.01, ha="left", weight="bold")
    path.parent.mkdir(exist_ok=True)
    metadata = {"Date": None, "Description": f"digest {digest(figure)}"} if path.suffix == ".svg" else None
    canvas.savefig(path, metadata=metadata, dpi=130)
    plt.close(canvas)


def _bars(panel: Panel, ax) -> None:
    values = [bar.value for bar in panel.bars]
    spread = [[bar.value - bar.least for bar in panel.bars], [bar.most - bar.value for bar in panel.bars]]
    colours = [COLOURS.get(bar.recipe.split()[0], OTHER) for bar in panel.bars]
    places = range(len(values))
    ax.barh(
        places,
        values,
        color=colours,
        height=0.72,
        xerr=spread,
        error_kw={"ecolor": "#333333", "elinewidth": 0.9, "capsize": 2},
    )
    limit = 1.16 * max(*values, *(bar.most for bar in panel.bars), *panel.ceilings.values(), 0)
    for place, bar in zip(places, panel.bars, strict=True):
        ax.text(
            bar.most + 0.012 * limit,
            place,
            f"{bar.value:,.0f}",
            va="center",
            fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )
    for dtype, ceiling in panel.ceilings.items():
        ax.axvline(ceiling, color="#333333", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        words = f" ceiling, {dtype}" if len(panel.ceilings) > 1 else " ceiling"
        ax.text(ceiling, -0.62, words, fontsize=7.5, va="center", color="#333333")
    ax.set_yticks(list(places), [bar.label for bar in panel.bars])
    ax.set_ylim(len(values) - 0.5, -0.9)
    ax.set_xlim(0, limit)
    ax.locator_params(axis="x", nbins=7)  # six-digit labels, too, keep their distance
    ax.set_xlabel(panel.unit)
    ax.set_title(panel.title, fontsize=9.5, loc="left")
    ax.tick_params(axis="y", length=0)


def _curve(curve: Curve, ax) -> None:
    for (label, (x, y)), colour in zip(curve.lines.items(), (COLOURS["rdn_fast"], COLOURS["stock"]), strict=False):
        ax.plot(x, y, color=colour, linewidth=1.3, marker="o", markersize=2.6, label=label)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.set_xlim(left=0)
    ax.set_xlabel(curve.x)
    ax.set_ylabel(curve.y)
    ax.legend(loc="lower right", fontsize=8, frameon=False)
