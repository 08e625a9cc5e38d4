"""`rdn-fast tune --loss-scale`: the loss scale that a run would choose, and the histogram of gradients behind it."""

from __future__ import annotations

import csv
import io
import math
from functools import partial
from pathlib import Path
from xml.sax.saxutils import escape

import torch

from rdn_fast import __version__, devices
from rdn_fast.auto_level import resolve_precision
from rdn_fast.config import ModelConfig, TrainConfig
from rdn_fast.errors import UserError, cannot_write
from rdn_fast.files import atomic_write
from rdn_fast.terminal import print_line
from rdn_fast.training import loss_scale
from rdn_fast.training.inputs import initial_model, open_inputs
from rdn_fast.training.loss_scale import (
    EXPONENT_BIAS,
    FP16_MAX,
    FP16_MIN_EXPONENT,
    FP16_NORMAL_EXPONENT,
    MARGIN,
    GradientHistogram,
    ResolvedScale,
)

_COLOURS = {"activations": "#5b8db8", "weights": "#d1622b"}
_WIDTH, _LEFT, _RIGHT, _TOP, _FLOOR = 960, 60, 20, 100, 400  # pixels of the figure and of its axes


def tune_loss_scale(model_config: ModelConfig, train_config: TrainConfig) -> None:
    """Calibrate the loss scale of a run, print why, and write loss_scale.csv and loss_scale.svg to outputs_dir.

    Raises UserError.
    """
    folder = Path(train_config.outputs_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _calibrate(model_config, train_config, folder)
    except OSError as error:
        raise UserError(f"--outputs-dir {folder}: {cannot_write(error, 'folder')}") from None


def _calibrate(model_config: ModelConfig, train_config: TrainConfig, folder: Path) -> None:
    device = devices.pick(train_config.device, train_config.device_id)
    inputs = open_inputs(model_config, train_config, device=device)
    model = initial_model(model_config, train_config.seed, inputs.weights)
    model.rdb = train_config.rdb
    model.to(device, memory_format=devices.memory_format(device))
    c, patch = train_config, train_config.patch_size
    shape = c.batch_size, 3, patch, patch
    run_precision = resolve_precision(c.opt_level, c.amp_dtype, device, model_config, shape, c.rdb)
    sample = partial(loss_scale.sample_batches, inputs.sampler, device)
    resolved = loss_scale.resolve(model, run_precision, sample, c.loss, c.batch_size)
    for line in resolved.lines:
        print_line(line)
    if resolved.histogram is None:
        return
    m, batches = model_config, resolved.histogram.batches
    title = (
        f"Gradients of RDN x{m.scale} D{m.num_blocks} C{m.num_layers} G{m.growth_rate} G0 {m.num_features} "
        f"at {run_precision.level}, {batches} batches of {c.batch_size * c.accumulate} patches of {patch}x{patch}",
        f"measured in float32 on {devices.describe(device)}; torch {torch.__version__}, rdn_fast {__version__}",
    )
    for name, text in (
        ("loss_scale.csv", histogram_csv(resolved.histogram)),
        ("loss_scale.svg", histogram_svg(resolved, title)),
    ):
        atomic_write(folder / name, lambda file, text=text: file.write(text.encode()))
    print_line(f"written: {folder / 'loss_scale.csv'}, {folder / 'loss_scale.svg'}")


def histogram_csv(histogram: GradientHistogram) -> str:
    """Return CSV with a line per kind and exponent e: how many magnitudes lie in 2^e up to 2^(e+1), and their share.

    The share is of all magnitudes of the kind. The exponent of zeros is `zero`.
    """
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["of", "exponent", "count", "share"])
    for kind, counts in histogram.counts.items():
        for i, count in enumerate(counts):
            if count:
                lines.writerow([kind, i - EXPONENT_BIAS if i else "zero", count, f"{count / sum(counts):.6g}"])
    return text.getvalue()


def histogram_svg(resolved: ResolvedScale, title: tuple[str, str]) -> str:
    """Return an SVG of the histogram at loss scale 1, without zeros, before fp16's range as the scale moves it."""
    histogram, shift = resolved.histogram, math.log2(resolved.scale)
    shares = {
        kind: {i + 1 - EXPONENT_BIAS: n / sum(counts[1:]) for i, n in enumerate(counts[1:]) if n}
        for kind, counts in histogram.counts.items()
    }
    underflow, subnormal, overflow = (
        exponent - shift for exponent in (FP16_MIN_EXPONENT, FP16_NORMAL_EXPONENT, math.log2(FP16_MAX))
    )
    visible = [exponent for column in shares.values() for exponent, share in column.items() if share > 1e-4]
    first, last = math.floor(min(*visible, underflow - 4)), math.floor(max(*visible, overflow + 5))
    chart = _Chart(first, last, 1.05 * max(share for column in shares.values() for share in column.values()))

    chart.text(_LEFT, 24, title[0], 'font-size="15" font-weight="bold"')
    chart.text(_LEFT, 42, title[1], 'fill="#555"')
    room = overflow - math.log2(MARGIN)
    chart.band(first, underflow, "#f6d5d0", "underflows")
    chart.band(underflow, subnormal, "#fbf1d3", "loses bits")
    chart.band(subnormal, room, "#e6f2e3", f"fp16 at loss scale {resolved.scale:.10g}")
    chart.band(room, overflow, "#d5e6d1", f"{MARGIN} x room")
    chart.band(overflow, last, "#f6d5d0", "overflows")
    for side, (kind, column) in enumerate(shares.items()):
        counts, colour = histogram.counts[kind], _COLOURS[kind]
        legend = f"\u25a0 {kind} ({counts[0] / sum(counts):.2%} are zero, not shown)"
        chart.text(_LEFT + 330 * side, 66, legend, f'fill="{colour}"')
        for exponent, share in column.items():
            if first <= exponent < last:
                chart.bar(exponent + 0.08 + 0.42 * side, exponent + 0.5 + 0.42 * side, share, colour)
    chart.axes()
    chart.marker(FP16_MIN_EXPONENT, "smaller ones underflow at scale 1")
    chart.marker(math.log2(histogram.largest), "largest")
    legend = "magnitude of a gradient at loss scale 1, against the share of its kind"
    chart.text(_LEFT, _FLOOR + 54, legend, 'fill="#555"')
    return chart.svg()


class _Chart:
    """SVG elements on axes: exponents of two, from `first` to `last`, against shares, from 0 to `highest`."""

    def __init__(self, first: int, last: int, highest: float):
        self._first, self._last, self._highest = first, last, highest
        self._step, self._height = (_WIDTH - _LEFT - _RIGHT) / (last - first), _FLOOR - _TOP
        self._elements: list[str] = []

    def _x(self, exponent: float) -> float:
        return _LEFT + (exponent - self._first) * self._step

    def text(self, left: float, y: float, words: str, attributes: str = 'text-anchor="middle"') -> None:
        self._elements.append(f'<text x="{left:.1f}" y="{y:.1f}" {attributes}>{escape(words)}</text>')

    def bar(self, begin: float, end: float, share: float, colour: str) -> None:
        x, width, height = self._x(begin), (end - begin) * self._step, self._height * share / self._highest
        box = f'x="{x:.1f}" y="{_FLOOR - height:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self._elements.append(f'<rect {box} fill="{colour}"/>')

    def band(self, begin: float, end: float, colour: str, words: str) -> None:
        """Add a coloured background with a caption above it."""
        self.bar(begin, end, self._highest, colour)
        self.text(self._x((begin + end) / 2), _TOP - 8, words)

    def axes(self) -> None:
        for percent in range(0, int(100 * self._highest) + 1, 5):
            y = _FLOOR + 4 - self._height * percent / 100 / self._highest
            self.text(_LEFT - 6, y, f"{percent}%", 'text-anchor="end"')
        for exponent in range(self._first + -self._first % 4, self._last + 1, 4):
            self.text(self._x(exponent), _FLOOR + 18, f"2^{exponent}")

    def marker(self, exponent: float, words: str) -> None:
        """Add a dashed vertical line with a caption below it."""
        x = self._x(exponent)
        self._elements.append(f'<path d="M{x:.1f} {_TOP}V{_FLOOR}" stroke="#333" stroke-dasharray="4 3"/>')
        self.text(x, _FLOOR + 34, words)

    def svg(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_FLOOR + 66}" '
            'font-family="DejaVu Sans, sans-serif" font-size="12">'
        )
        background = '<rect width="100%" height="100%" fill="white"/>'
        return "\n".join([head, background, *self._elements, "</svg>\n"])
