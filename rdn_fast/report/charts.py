"""The charts of a page: loss, PSNR, learning rate and speed of all runs, each over steps and over minutes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from rdn_fast.report.curves import Axis, Line, Mark, draw, running_mean, value_axis
from rdn_fast.report.read import Run
from rdn_fast.report.tables import chip
from rdn_fast.report.words import number, words

_SMOOTH = 50  # a running mean is over a 50th of the steps
_NARROWEST = 5  # or so many


class _Chart(NamedTuple):
    title: str
    unit: str
    lines: Callable[[int, Run], list[Line]]  # of one run, over steps
    axis: Callable[[list[Line]], Axis | None]
    legend: str


def _loss(i: int, run: Run) -> list[Line]:
    x, y = run.steps["step"], run.steps["loss"]
    mean = running_mean(y, _window(run))
    return [Line(i, "of each step", x, y, "raw"), Line(i, "mean", x, mean, "line")]


def _window(run: Run) -> int:
    return max(_NARROWEST, len(run.steps["step"]) // _SMOOTH)


def _psnr(i: int, run: Run) -> list[Line]:
    known = np.isfinite(run.epochs["psnr_y"])
    lines = [Line(i, "RDN", run.epochs["step"][known], run.epochs["psnr_y"][known])]
    if known.any() and np.isfinite(run.bicubic_psnr):
        ends = np.array([0.0, run.last_step])
        lines.append(Line(i, "bicubic", ends, np.full(2, run.bicubic_psnr), "dashed"))
    return lines


def _rate(i: int, run: Run) -> list[Line]:
    return [Line(i, "learning rate", run.steps["step"], run.steps["lr"])]


def _speed(i: int, run: Run) -> list[Line]:
    x = run.epochs["step"]
    window = Line(i, "seed window", x, run.epochs["fps_seed_window"], "dashed")
    return [window, Line(i, "end-to-end", x, run.epochs["fps_end_to_end"])]


_CHARTS = (
    _Chart("Loss", "", _loss, partial(value_axis, log=True), "faint: each step; bold: running mean over {window}"),
    _Chart("PSNR-Y of the validation", "dB", _psnr, partial(value_axis, cut=True), "canonical; dashed: bicubic"),
    _Chart("Learning rate", "", _rate, partial(value_axis, zero=True), ""),
    _Chart("Speed", "img/s", _speed, partial(value_axis, zero=True), "end-to-end; dashed: in the seed window"),
)


def charts(runs: list[Run]) -> str:
    """Return the section of all charts, with a switch between steps and minutes that needs no script."""
    switch = (
        '<input type="radio" name="axis" id="by-steps" checked><label for="by-steps">over steps</label>'
        '<input type="radio" name="axis" id="by-minutes"><label for="by-minutes">over minutes</label>'
    )
    names = " ".join(chip(i, runs) for i in range(len(runs)))
    shown = "".join(_figure(chart, runs) for chart in _CHARTS)
    return (
        f'<section id="curves"><h2>Curves</h2>{switch}<p class="legend">{names}</p>'
        f'<div class="charts">{shown}</div>{_mark_legend(runs)}</section>'
    )


def _figure(chart: _Chart, runs: list[Run]) -> str:
    lines = [line for i, run in enumerate(runs) for line in chart.lines(i, run)]
    axis = chart.axis(lines)
    unit = ", ".join(filter(None, (chart.unit, "log scale" if axis and axis.log else "")))
    windows = sorted({_window(run) for run in runs})
    legend = chart.legend.format(window=f"{' or '.join(map(number, windows))} steps")
    below = [number(line.y[0]) for line in lines if axis and len(line.y) and line.y[0] < axis.low]
    legend += f"; begins below the plot, at {' and '.join(below)} {chart.unit}" if below else ""
    return (
        f'<figure class="chart"><figcaption><b>{words(chart.title)}</b> <span>{words(unit)}</span>'
        f'<output class="readout" aria-live="off"></output></figcaption>'
        f'<div class="by-steps">{_over_steps(chart, runs, lines, axis)}</div>'
        f'<div class="by-minutes">{_over_minutes(chart, runs, lines, axis)}</div>'
        f'<p class="legend">{words(legend)}</p></figure>'
    )


def _over_steps(chart: _Chart, runs: list[Run], lines: list[Line], axis: Axis | None) -> str:
    marks = [mark for i, run in enumerate(runs) for mark in _marks(i, run)]
    return draw(chart.title, chart.unit, lines, marks, "step", axis, float(max(1, *(run.last_step for run in runs))))


def _over_minutes(chart: _Chart, runs: list[Run], lines: list[Line], axis: Axis | None) -> str:
    timed = {i for i, run in enumerate(runs) if run.minutes(np.zeros(1)) is not None}
    if not timed:
        return '<p class="none">no epoch has ended yet, which would tell the time</p>'
    lines = [line._replace(x=runs[line.run].minutes(line.x)) for line in lines if line.run in timed]
    marks = [mark for i in sorted(timed) for mark in _marks(i, runs[i])]
    marks = [mark._replace(x=runs[mark.run].minutes(mark.x)) for mark in marks]
    high = max(float(runs[i].minutes(np.array([float(runs[i].last_step)]))[0]) for i in timed)
    return draw(chart.title, chart.unit, lines, marks, "minute", axis, high or 1.0)


def _marks(i: int, run: Run) -> list[Mark]:
    resumed = [float(start["step"]) for start in run.starts if start["event"] == "resume"]
    skipped = run.steps["step"][run.steps["skipped"] == 1]
    marks = Mark(i, "resume", np.array(resumed)), Mark(i, "skipped", skipped)
    return [mark for mark in marks if len(mark.x)]


def _mark_legend(runs: list[Run]) -> str:
    marks = [mark for i, run in enumerate(runs) for mark in _marks(i, run)]
    resumes, skipped = (sum(len(mark.x) for mark in marks if mark.kind == kind) for kind in ("resume", "skipped"))
    parts = [f"dotted from top to bottom: resumes ({resumes})"] if resumes else []
    parts += [f"ticks at the bottom: skipped steps ({number(skipped)})"] if skipped else []
    return f'<p class="legend">{words("; ".join(parts))}</p>' if parts else ""
