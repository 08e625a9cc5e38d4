"""Charts: curves of several runs as inline SVG that stretches with the page, labels as HTML that does not."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from rdn_fast.report.words import number, words

_BUCKETS = 500  # of a curve that has more points than twice as many; of each the least and the largest value is drawn
_DOTS = 60  # a curve with fewer points shows each
_MARKS = 200  # of a kind and run
_SIDE = 1000  # of the SVG's own coordinates
_LEAST = 1e-100  # of a value on a log scale


class Line(NamedTuple):
    """A curve. x: [N], rising; y: [N], NaN where there is no value. style: a class of page.css."""

    run: int
    label: str
    x: np.ndarray
    y: np.ndarray
    style: str = "line"


class Mark(NamedTuple):
    """Places on the x axis. kind: "resume", lines from top to bottom, or "skipped", small ticks at the bottom."""

    run: int
    kind: str
    x: np.ndarray


class Axis(NamedTuple):
    low: float
    high: float
    log: bool

    def place(self, values):
        """Return where values lie between low, 0, and high, 1."""
        low, high = (math.log10(end) if self.log else end for end in (self.low, self.high))
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.log10(values) if self.log else values
        return (values - low) / (high - low)

    def ticks(self, most: int) -> list[float]:
        """Return at most so many round values within the axis."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors in ((1, 2, 5), (1, 3), (1,)):
                ticks = [factor * 10.0**decade for decade in decades for factor in factors]
                ticks = [tick for tick in ticks if self.low <= tick <= self.high]
                if len(ticks) <= most:
                    break
            if len(ticks) >= 2:
                return ticks[:: -(-len(ticks) // most)]
        span = self.high - self.low
        unit = 10.0 ** math.floor(math.log10(span / most))
        step = next(unit * factor for factor in (1, 2, 5, 10, 20) if span / (unit * factor) <= most - 1)
        return [i * step for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def thin(x: np.ndarray, y: np.ndarray, buckets: int = _BUCKETS) -> tuple[np.ndarray, np.ndarray]:
    """Return at most 2 * buckets points of a curve, in order: of each bucket the least and the largest value.

    A bucket without any value keeps one NaN.
    """
    if len(x) <= 2 * buckets:
        return x, y
    kept = []
    for bucket in np.array_split(np.arange(len(x)), buckets):
        values = y[bucket]
        if np.isnan(values).all():
            kept.append(bucket[0])
        else:
            kept.extend(sorted({bucket[np.nanargmin(values)], bucket[np.nanargmax(values)]}))
    return x[kept], y[kept]


def running_mean(y: np.ndarray, width: int) -> np.ndarray:
    """Return the mean of the `width` values around each one, fewer at the ends, without NaN; NaN stays NaN."""
    known = np.isfinite(y)
    sums, counts = (np.concatenate([[0.0], np.cumsum(part)]) for part in (np.where(known, y, 0.0), known))
    begin = np.arange(len(y)) - width // 2
    begin, end = (np.clip(edge, 0, len(y)) for edge in (begin, begin + width))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, (sums[end] - sums[begin]) / (counts[end] - counts[begin]), np.nan)


def value_axis(lines: Iterable[Line], log: bool = False, zero: bool = False, cut: bool = False) -> Axis | None:
    """Return the axis of the values; None where there are none.

    log: if they are positive and spread enough. zero: from 0. cut: leave out what is low in the first fifth of each
    curve, where the others would else have less than half of the plot: as the first PSNRs are.
    """
    finite = [line.y[np.isfinite(line.y)] for line in lines]
    values = np.concatenate(finite) if finite else np.empty(0)
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    if log and low > _LEAST and high > 3 * low:
        pad = (high / low) ** 0.04
        return Axis(low / pad, high * pad, True)
    if cut:
        later = min(float(y[len(y) // 5 :].min()) for y in finite if len(y))
        low = later if low < later - (high - later) else low
    if zero:
        low = min(low, 0.0)
    size = max(abs(low), abs(high))
    pad = 0.05 * ((high - low) if high - low > 1e-6 * size else size) or 1.0
    return Axis(low if zero and not low else low - pad, high + pad, False)


def draw(
    title: str, unit: str, lines: list[Line], marks: list[Mark], x_label: str, y_axis: Axis | None, x_high: float
) -> str:
    """Return a plot as HTML: grid, marks, curves and labels. x_high: where the x axis ends."""
    if y_axis is None:
        return '<p class="none">no finite value yet</p>'
    x_axis = Axis(0.0, x_high, False)
    x_ticks, y_ticks = x_axis.ticks(6), y_axis.ticks(6)
    grid = "".join(f"M{_across(x_axis, tick)} 0V{_SIDE}" for tick in x_ticks)
    grid += "".join(f"M0 {_down(y_axis, tick)}H{_SIDE}" for tick in y_ticks)
    drawn = [f'<path class="grid" d="{grid}"/>']
    for mark in marks:
        every = mark.x[:: -(-len(mark.x) // _MARKS) or 1]
        shape = f"V{_SIDE}" if mark.kind == "resume" else "v-30"
        top = 0 if mark.kind == "resume" else _SIDE
        path = "".join(f"M{_across(x_axis, x)} {top}{shape}" for x in every)
        drawn.append(f'<path class="{mark.kind} r{mark.run % 8}" d="{path}"/>')
    drawn.extend(_curve(line, x_axis, y_axis) for line in lines)
    x_labels = "".join(f'<span style="left:{_percent(x_axis, t)}%">{number(t)}</span>' for t in x_ticks)
    y_labels = "".join(f'<span style="bottom:{_percent(y_axis, t)}%">{number(t)}</span>' for t in y_ticks)
    about = words(f"{title} over {x_label}. {' '.join(map(_in_words, lines))}")
    ends = f'data-x-high="{x_high!r}" data-low="{y_axis.low!r}" data-high="{y_axis.high!r}"'
    return (
        f'<div class="plot" {ends} data-log="{int(y_axis.log)}" data-unit="{words(unit)}" data-x="{words(x_label)}">'
        f'<div class="y" aria-hidden="true">{y_labels}</div>'
        f'<svg viewBox="0 0 {_SIDE} {_SIDE}" preserveAspectRatio="none" role="img" aria-label="{about}">'
        f'{"".join(drawn)}</svg><div class="x" aria-hidden="true">{x_labels}<em>{words(x_label)}</em></div></div>'
    )


def _curve(line: Line, x_axis: Axis, y_axis: Axis) -> str:
    x, y = thin(line.x, line.y)
    points = np.column_stack([x_axis.place(x), 1 - y_axis.place(y)]) * _SIDE
    points = np.clip(points, -1000 * _SIDE, 1000 * _SIDE)
    pen, path, known = "M", [], 0
    for (across, down), ok in zip(points.round(1).tolist(), np.isfinite(points).all(axis=1), strict=True):
        if not ok:
            pen = "M"
            continue
        path.append(f"{pen}{across:.9g} {down:.9g}" + ("h0" if pen == "M" else ""))
        pen, known = "L", known + 1
    dots = " dots" if known <= _DOTS and line.style == "line" else ""
    marker = "".join(f"{part.replace('L', 'M').removesuffix('h0')}h0" for part in path) if dots else ""
    shown = f'<path class="{line.style} r{line.run % 8}" data-label="{words(line.label)}" d="{"".join(path)}"/>'
    return shown + (f'<path class="dots r{line.run % 8}" d="{marker}"/>' if dots else "")


def _in_words(line: Line) -> str:
    known = np.flatnonzero(np.isfinite(line.y))
    if not len(known):
        return f"{line.label}: no value."
    first, last = known[0], known[-1]
    return (
        f"{line.label}: from {number(line.y[first])} at {number(line.x[first])} "
        f"to {number(line.y[last])} at {number(line.x[last])}."
    )


def _across(axis: Axis, value: float) -> str:
    return f"{_SIDE * axis.place(value):.1f}"


def _down(axis: Axis, value: float) -> str:
    return f"{_SIDE * (1 - axis.place(value)):.1f}"


def _percent(axis: Axis, value: float) -> str:
    return f"{100 * axis.place(value):.2f}"
