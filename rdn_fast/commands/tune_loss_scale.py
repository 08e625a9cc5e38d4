"""`rdn-fast tune --loss-scale`: the loss scale that a run would choose, and the gradients it is chosen from as a table and a picture."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from xml.sax.saxutils import escape

import torch

from rdn_fast import __version__, devices, precision
from rdn_fast.config import ModelConfig, TrainConfig
from rdn_fast.errors import UserError
from rdn_fast.files import atomic_write
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
_WIDTH, _LEFT, _RIGHT, _TOP, _FLOOR = 960, 60, 20, 100, 400  # of the picture and its axes


def tune_loss_scale(config: ModelConfig, train: TrainConfig) -> None:
    """Calibrate for a run with these settings, print why, and write loss_scale.csv and loss_scale.svg to outputs_dir. Raises UserError."""
    folder = Path(train.outputs_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _calibrate(config, train, folder)
    except OSError as error:
        raise UserError(
            f"--outputs-dir {folder}: cannot be written ({error.strerror}); choose another folder"
        ) from None


def _calibrate(config: ModelConfig, train: TrainConfig, folder: Path) -> None:
    device = devices.pick(train.device, train.device_id)
    inputs = open_inputs(config, train, device=device)
    model = initial_model(config, train.seed, inputs.weights)
    model.rdb = train.rdb
    model.to(device, memory_format=devices.memory_format(device))
    chosen = precision.resolve(train.opt_level, train.amp_dtype, device)
    choice = loss_scale.resolve(model, chosen, lambda: loss_scale.sample_batches(inputs.sampler, device))
    print("\n".join(choice.lines))
    if choice.histogram is None:
        return
    title = (
        f"Gradients of RDN x{config.scale} D{config.num_blocks} C{config.num_layers} G{config.growth_rate} G0 {config.num_features} at {chosen.level}, "
        f"{choice.histogram.batches} batches of {train.batch_size} patches of {train.patch_size}x{train.patch_size}",
        f"measured in float32 on {devices.describe(device)}; torch {torch.__version__}, rdn_fast {__version__}",
    )
    atomic_write(folder / "loss_scale.csv", lambda file: file.write(table(choice.histogram).encode()))
    atomic_write(folder / "loss_scale.svg", lambda file: file.write(picture(choice, title).encode()))
    print(f"written: {folder / 'loss_scale.csv'}, {folder / 'loss_scale.svg'}")


def table(evidence: GradientHistogram) -> str:
    """CSV: for each kind and exponent e how many magnitudes lie in 2^e up to 2^(e+1), and as a share of the kind's; `zero` for zeros."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["of", "exponent", "count", "share"])
    for kind, counts in evidence.counts.items():
        for place, count in enumerate(counts):
            if count:
                rows.writerow([kind, place - EXPONENT_BIAS if place else "zero", count, f"{count / sum(counts):.6g}"])
    return text.getvalue()


def picture(choice: ResolvedScale, title: tuple[str, str]) -> str:
    """SVG: the histogram at scale 1, without zeros, and under it fp16's range as the scale moves it."""
    evidence, scale = choice.histogram, math.log2(choice.scale)
    shares = {
        kind: {i + 1 - EXPONENT_BIAS: n / sum(counts[1:]) for i, n in enumerate(counts[1:]) if n}
        for kind, counts in evidence.counts.items()
    }
    seen = [exponent for column in shares.values() for exponent, share in column.items() if share > 1e-4]
    underflow, subnormal, overflow = (
        FP16_MIN_EXPONENT - scale,
        FP16_NORMAL_EXPONENT - scale,
        math.log2(FP16_MAX) - scale,
    )
    room = overflow - math.log2(MARGIN)
    first, last = (math.floor(edge) for edge in (min(*seen, underflow - 4), max(*seen, overflow + 5)))
    highest = 1.05 * max(share for column in shares.values() for share in column.values())
    wide, tall = (_WIDTH - _LEFT - _RIGHT) / (last - first), _FLOOR - _TOP

    def x(exponent: float) -> float:
        return _LEFT + (exponent - first) * wide

    def text(left: float, y: float, words: str, how: str = 'text-anchor="middle"') -> str:
        return f'<text x="{left:.1f}" y="{y:.1f}" {how}>{escape(words)}</text>'

    def bar(begin: float, end: float, share: float, colour: str) -> str:
        height = tall * share / highest
        return f'<rect x="{x(begin):.1f}" y="{_FLOOR - height:.1f}" width="{(end - begin) * wide:.1f}" height="{height:.1f}" fill="{colour}"/>'

    parts = [text(_LEFT, 24, title[0], 'font-size="15" font-weight="bold"'), text(_LEFT, 42, title[1], 'fill="#555"')]
    for begin, end, colour, words in (
        (first, underflow, "#f6d5d0", "underflows"),
        (underflow, subnormal, "#fbf1d3", "loses bits"),
        (subnormal, room, "#e6f2e3", f"fp16 at loss scale {choice.scale:.10g}"),
        (room, overflow, "#d5e6d1", f"{MARGIN} x room"),
        (overflow, last, "#f6d5d0", "overflows"),
    ):
        parts += [bar(begin, end, highest, colour), text(x((begin + end) / 2), _TOP - 8, words)]
    for side, (kind, column) in enumerate(shares.items()):
        counts = evidence.counts[kind]
        parts.append(
            text(
                _LEFT + 330 * side,
                66,
                f"\u25a0 {kind} ({counts[0] / sum(counts):.2%} are zero, not shown)",
                f'fill="{_COLOURS[kind]}"',
            )
        )
        parts += [
            bar(e + 0.08 + 0.42 * side, e + 0.5 + 0.42 * side, share, _COLOURS[kind])
            for e, share in column.items()
            if first <= e < last
        ]
    parts += [
        text(_LEFT - 6, _FLOOR + 4 - tall * share / 100 / highest, f"{share}%", 'text-anchor="end"')
        for share in range(0, int(100 * highest) + 1, 5)
    ]
    parts += [text(x(e), _FLOOR + 18, f"2^{e}") for e in range(first + -first % 4, last + 1, 4)]
    for exponent, words in (
        (FP16_MIN_EXPONENT, "smaller ones underflow at scale 1"),
        (math.log2(evidence.largest), "largest"),
    ):
        parts.append(f'<path d="M{x(exponent):.1f} {_TOP}V{_FLOOR}" stroke="#333" stroke-dasharray="4 3"/>')
        parts.append(text(x(exponent), _FLOOR + 34, words))
    parts.append(
        text(
            _LEFT, _FLOOR + 54, "magnitude of a gradient at loss scale 1, against the share of its kind", 'fill="#555"'
        )
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_FLOOR + 66}" font-family="DejaVu Sans, sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])
