"""What the runs of loss_scale.py show: the edges of the loss scale, as text, table and picture."""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench import plots

STEPS, LAST, POINT = 300, 100, 20  # steps of a run, of its final loss, of a point of its curve
LEVELS = ("O1", "O2")
SHOWN = "O1"  # whose curves are drawn
COLOURS = {"O1": "#5b8db8", "O2": "#d1622b"}


@dataclass(frozen=True)
class Run:
    """One training run. `exponent`: of the scale that it began with, None in float32. Losses are means over steps."""

    level: str
    dtype: str
    exponent: int | None
    tuned: bool
    seed: int
    steps: int
    schedule: str = "cosine"
    lost: float | None = None  # share of the first batches' gradients below fp16's smallest number at that scale
    loss: float | None = None  # of the last LAST steps
    deviation: float | None = None  # mean distance of these steps' losses from float32's, same seed, over `loss`
    psnr_y: float | None = None  # of the held-out photographs
    skipped: int = 0
    first_skip: int | None = None
    last_exponent: float | None = None
    largest_o1: float | None = None  # gradient after the steps, of those that are fp16 at O1, and at O2
    largest_o2: float | None = None
    curve: str = ""  # losses of POINT steps each
    end: str = "complete"


class Edges(NamedTuple):
    """Exponents of scales: at `underflow` and below it hurts, at `overflow` and above steps are skipped.

    None: at none that was tried.
    """

    underflow: int | None
    overflow: int | None


def float32_runs(runs: list[Run]) -> list[Run]:
    """Return the float32 runs to compare with, the first seed's first."""
    return [run for run in runs if run.level == "O0" and run.schedule == "cosine"]


def edges(runs: list[Run], level: str) -> Edges:
    """Return the edges that the runs of a level show, as the head of loss_scale.py defines them."""
    base = [run.loss for run in float32_runs(runs)]
    highest = base[0] + max(base) - min(base)
    mine = [run for run in runs if run.level == level]
    under = [run.exponent for run in mine if not run.skipped and not run.loss <= highest]  # NaN hurts, too
    return Edges(max(under, default=None), min((run.exponent for run in mine if run.skipped), default=None))


def between(runs: list[Run], level: str) -> list[int]:
    """Return the exponents to try next: halfway from an edge to the next scale that is good."""
    under, over = edges(runs, level)
    tried = [run.exponent for run in runs if run.level == level]
    good = [e for e in tried if (under is None or e > under) and (over is None or e < over)]
    gaps = [(under, min(good)), (max(good), over)] if good else []
    return [(low + high) // 2 for low, high in gaps if None not in (low, high) and high - low > 1]


def growth(runs: list[Run], level: str) -> float:
    """Return the largest gradient met later over the first batches' largest one."""
    values = (getattr(run, f"largest_{level.lower()}") for run in runs)
    first, *others = (value for value in values if value is not None)
    return max(others) / first


def table(runs: list[Run]) -> str:
    """Return the edges as text."""
    base = float32_runs(runs)
    losses = [run.loss for run in base]
    spread = f"{min(losses):.5f} to {max(losses):.5f} over {len(base)} seeds"
    lines = [f"float32: mean loss of the last {LAST} of {STEPS} steps {losses[0]:.5f}, {spread}"]
    for level in LEVELS:
        under, over = edges(runs, level)
        low = {run.exponent: run for run in runs if run.level == level}
        best = next(run for run in low.values() if run.tuned)
        lost = f" ({low[under].lost:.1%} of the first batches' gradients are lost)" if under is not None else ""
        grew = f"the largest gradient grew {growth(runs, level):.2f} times"
        lines += [
            f"{level}: underflow hurts at 2^{under} and below{lost}, overflow begins at 2^{over}; {grew}",
            f"{level}: tuned 2^{best.exponent}: loss {best.loss:.5f}, {best.deviation:.2%} from float32's curve, "
            f"{best.psnr_y:.2f} dB (float32 {base[0].psnr_y:.2f}), {best.skipped} steps skipped",
        ]
    return "\n".join(lines)


_FIELDS = dataclasses.fields(Run)


def write(runs: list[Run], conditions: dict[str, str], picture: Path) -> None:
    """Write `picture` (SVG, or what its suffix says), and the table beside it as CSV."""
    with picture.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow([*conditions, *(field.name for field in _FIELDS)])
        for run in runs:
            values = (f"{v:.6g}" if isinstance(v, float) else v for v in dataclasses.astuple(run))
            rows.writerow([*conditions.values(), *values])
    draw(runs, conditions, picture)


def read(table: Path) -> tuple[list[Run], dict[str, str]]:
    """Parse a CSV file that write() wrote: (runs, conditions)."""
    kinds = {"str": str, "bool": "True".__eq__, "int": int, "float": float}

    def value(field: dataclasses.Field, text: str):
        optional = field.type.endswith(" | None")
        return None if optional and not text else kinds[field.type.removesuffix(" | None")](text)

    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    runs = [Run(**{field.name: value(field, row[field.name]) for field in _FIELDS}) for row in rows]
    names = {field.name for field in _FIELDS}
    return runs, {name: value for name, value in rows[0].items() if name not in names}


def draw(runs: list[Run], conditions: dict[str, str], picture: Path) -> None:
    """Draw the same bytes for the same runs."""
    canvas, axes = plots.canvas((12, 5), columns=2)
    left, right = axes[0]
    _draw_losses(left, runs)
    _draw_curves(right, runs)
    for ax in (left, right):
        ax.set_yscale("log")
        ax.set_yticks([value for value in _TICKS if ax.get_ylim()[0] <= value <= ax.get_ylim()[1]])
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
    c = conditions
    what = f"RDN {c['model']}, batch {c['batch']} of {c['patch']}, {STEPS} steps"
    canvas.suptitle(f"Static loss scales in fp16: {what}", x=0.01, ha="left", weight="bold")
    where = f"{c['kind']} {c['date']} on {c['device']}; torch {c['torch']}"
    source = f"{where}, rdn_fast {c['rdn_fast']}, commit {c['commit']}, {c['command']}"
    canvas.supxlabel(source, fontsize=8, x=0.01, ha="left")
    plots.save(canvas, picture)


_TICKS = [digit * 10**power for power in (-3, -2, -1, 0) for digit in (1, 1.5, 2, 3, 5, 7)]


def _draw_losses(ax, runs: list[Run]) -> None:
    base = float32_runs(runs)
    losses = [run.loss for run in base]
    grey = {"color": "#9a9a9a", "alpha": 0.5, "linewidth": 0}
    ax.axhspan(min(losses), max(losses), label=f"float32, {len(base)} seeds", **grey)
    for i, level in enumerate(LEVELS):
        mine, colour = [run for run in runs if run.level == level], COLOURS[level]
        exponents = [run.exponent for run in mine]
        ax.plot(exponents, [run.loss for run in mine], color=colour, linewidth=1, label=f"fp16, {level}")
        for skipped, marker in ((False, "o"), (True, "x")):
            some = [run for run in mine if bool(run.skipped) == skipped]
            points = [run.exponent for run in some], [run.loss for run in some]
            ax.scatter(*points, s=24, marker=marker, color=colour)
        best = next(run for run in mine if run.tuned)
        star = {"s": 150, "marker": "*", "color": colour, "edgecolor": "black", "zorder": 4}
        ax.scatter(best.exponent, best.loss, label=f"{level} tuned, {_power(best.exponent)}", **star)
        for edge, what in zip(edges(runs, level), ("underflow hurts", "overflow"), strict=True):
            if edge is not None:
                ax.axvline(edge, color=colour, linewidth=0.9, linestyle=(0, (4, 3)))
                left = what == "overflow"
                given = {"color": colour, "bbox": plots.BEHIND, "transform": ax.get_xaxis_transform()}
                given |= {"ha": "right" if left else "left", "va": "center"}
                ax.text(edge + (-0.5 if left else 0.5), 0.96 - 0.06 * i, f"{what}, {_power(edge)}", **given)
    ax.scatter([], [], marker="x", color=plots.INK, label="steps were skipped")
    ax.legend(loc="center")
    ax.set_xlabel("loss scale, as a power of two")
    ax.set_ylabel(f"mean loss of the last {LAST} of {STEPS} steps")
    ax.set_title("Final loss against the loss scale")


def _draw_curves(ax, runs: list[Run]) -> None:
    first, *others = float32_runs(runs)
    for run in others:
        _curve(ax, run, "float32, other seeds" if run is others[0] else None, color="#9a9a9a", linewidth=1)
    mine = {run.exponent: run for run in runs if run.level == SHOWN}
    tuned = next(run.exponent for run in mine.values() if run.tuned)
    shown = (
        (min(mine), "too small", "#8d6bb0"),
        (edges(runs, SHOWN).underflow, "underflow hurts", "#5b8db8"),
        (max(mine), "too large", "#7aa37a"),
        (tuned, "tuned", "#d1622b"),
    )
    for exponent, what, colour in shown:
        if exponent is not None:
            run = mine[exponent]
            note = f", halved to {_power(run.last_exponent)}" if run.last_exponent != exponent else ""
            _curve(ax, run, f"{SHOWN} at {_power(exponent)}, {what}{note}", color=colour, linewidth=2)
    _curve(ax, first, f"float32, seed {first.seed} as fp16", color="black", linewidth=1, linestyle="--")
    ax.legend()
    ax.set_xlabel("step")
    ax.set_ylabel(f"mean loss of {POINT} steps")
    ax.set_title(f"Loss curves, {SHOWN}")


def _power(exponent: float) -> str:
    return f"$2^{{{exponent:g}}}$"


def _curve(ax, run: Run, label: str | None, **style) -> None:
    points = [float(point) for point in run.curve.split()]
    ax.plot([POINT * (i + 0.5) for i in range(len(points))], points, label=label, **style)
