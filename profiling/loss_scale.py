"""`python -m profiling.loss_scale`: what the loss scale does to fp16 training, as loss_scale.csv and loss_scale.svg.

A small RDN is trained on scikit-image's photographs by `rdn-fast train`: in float32 from several seeds, and in fp16 (O1
and O2) from the first seed at powers of two from far too small to far too large. Underflow hurts if the mean loss of
the last steps is above that of float32, same seed, by more than float32's seeds lie apart. Overflow begins where a step
is skipped. Both edges are narrowed down to a factor of two. The tuned scale is what `--loss-scale-value auto` chooses.
How much room it needs is shown by the largest gradients along a float32 run.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from bench import plots, results
from bench.models import words
from rdn_fast import devices, precision
from rdn_fast.commands import demo
from rdn_fast.config import ModelConfig
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.sampler import PatchSampler
from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from rdn_fast.training.loss_scale import FP16_MIN_EXPONENT, MARGIN, GradientHistogram, calibrate, sample_batches
from rdn_fast.weights import convert

PICTURE = Path(__file__).with_name("loss_scale.svg")
MODEL = ModelConfig(num_features=16, growth_rate=16, num_blocks=2, num_layers=3)
PATCH, BATCH, LR = 12, 4, 2e-3
STEPS, LAST, POINT = 300, 100, 20  # steps of a run, of its final loss, of a point of its curve
SEEDS = (123, 1, 2, 3)
LEVELS = ("O1", "O2")
SHOWN = "O1"  # whose curves are drawn
COARSE = range(-16, 25, 8)  # exponents of the scales that are tried first
ALONG = (0, 1, 4, 16, 64, STEPS)  # steps after which gradients are measured, in float32 at a rate that stays
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
    """Return the edges that the runs of a level show, as the head of this file defines them."""
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


class Trial:
    """Training runs in a folder, on a device, with photographs that are written once."""

    def __init__(self, folder: Path, device: torch.device):
        self.folder, self.device = folder, device
        self.train_file, self.eval_file = demo.prepare(folder)
        self.base = Run("O0", "float32", None, False, SEEDS[0], STEPS)
        self.losses: list[float] = []  # of that run

    def train(self, run: Run) -> Run:
        """Make the run by `rdn-fast train` in a process of its own. Return it with its results."""
        out = self._folder(run)
        given = {key: value for key, value in dataclasses.asdict(MODEL).items() if value is not None}
        given |= {"train-file": self.train_file, "eval-file": self.eval_file, "eval-every": 10**6, "outputs-dir": out}
        given |= {"patch-size": PATCH, "batch-size": BATCH, "lr": LR, "lr-schedule": run.schedule, "seed": run.seed}
        given |= {"max-steps": run.steps, "opt-level": run.level, "rdb": "naive", "device": self.device}
        if run.exponent is not None:
            given |= {"amp-dtype": "fp16", "loss-scale-value": 2.0**run.exponent}
        command = [sys.executable, "-m", "rdn_fast", "train", *(f"--{name}={value}" for name, value in given.items())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the runs share the cores
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode not in (0, 1):
            raise UserError(f"{shlex.join(command)} ended with {ended.returncode}: {ended.stderr.strip()}")
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return self._with_results(run, records, ended.stderr.strip() or "complete")

    def _with_results(self, run: Run, records: list[dict], end: str) -> Run:
        taken = [record for record in records if record["event"] == "step"]
        losses = [math.nan if record["loss"] is None else record["loss"] for record in taken]
        skips = [record["step"] for record in taken if record.get("skipped")]
        scales = [record["loss_scale"] for record in records if record["event"] == "loss_scale"]
        loss, deviation = fmean(losses[-LAST:]), None
        if run == self.base:
            self.losses = losses
        if run.exponent is not None and len(losses) == len(self.losses):
            pairs = zip(losses[-LAST:], self.losses[-LAST:], strict=True)
            deviation = fmean(abs(a - b) for a, b in pairs) / loss
        return dataclasses.replace(
            run,
            loss=loss,
            deviation=deviation,
            psnr_y=next((record["psnr_y"] for record in records if "psnr_y" in record), None),
            skipped=len(skips),
            first_skip=min(skips, default=None),
            last_exponent=math.log2(scales[-1]) if scales else run.exponent,
            curve=" ".join(f"{fmean(losses[i : i + POINT]):.5g}" for i in range(0, len(losses) - POINT + 1, POINT)),
            end=end,
        )

    def evidence(self, run: Run, level: str) -> GradientHistogram:
        """Return what the gradients say that would be fp16 after a float32 run, on the batches that come next."""
        torch.manual_seed(run.seed)
        model = RDN(MODEL)
        if run.steps:
            model.load_state_dict(convert.read_weights(self._folder(run) / "last.pth").state)
        model.to(self.device, memory_format=devices.memory_format(self.device))
        sampler = PatchSampler(PairedH5(self.train_file, MODEL.scale), PATCH, BATCH, run.seed)
        return calibrate(
            model, precision.resolve(level, "fp16", self.device), sample_batches(sampler, self.device, run.steps)
        )

    def _folder(self, run: Run) -> Path:
        return self.folder / f"{run.level}_{run.exponent}_{run.seed}_{run.steps}_{run.schedule}"


def measure(device: torch.device) -> list[Run]:
    """Return every run: float32's, by seed and then by steps, and fp16's by level and scale.

    UserError if a run cannot be made.
    """
    workers = os.cpu_count() if devices.is_host(device) else 1
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        trial = Trial(Path(folder), device)
        runs = [*pool.map(trial.train, (dataclasses.replace(trial.base, seed=seed) for seed in SEEDS))]
        start: dict[str, GradientHistogram] = {}
        for steps in ALONG:
            run = dataclasses.replace(trial.base, steps=steps, schedule="step")
            run = trial.train(run) if steps else run
            found = {level: trial.evidence(run, level) for level in LEVELS}
            largest = {f"largest_{level.lower()}": evidence.largest for level, evidence in found.items()}
            runs.append(dataclasses.replace(run, **largest))
            start = start or found
        tuned = {level: round(math.log2(evidence.scale)) for level, evidence in start.items()}

        def fp16(level: str, exponent: int) -> Run:
            lost = start[level].share_below(FP16_MIN_EXPONENT, 2.0**exponent)
            return Run(level, "float16", exponent, exponent == tuned[level], SEEDS[0], STEPS, lost=lost)

        wanted = [(level, e) for level in LEVELS for e in sorted({*COARSE, tuned[level]})]
        while wanted:
            low = [*pool.map(trial.train, (fp16(*one) for one in wanted))]
            for run in low:
                print(f"{run.level} 2^{run.exponent}: loss {run.loss:.5f}, {run.skipped} steps skipped", flush=True)
            runs += low
            wanted = [(level, e) for level in LEVELS for e in between(runs, level)]
    return sorted(runs, key=lambda run: ("", 0) if run.exponent is None else (run.level, run.exponent))


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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda[:i] or npu[:i]")
    given = parser.parse_args(argv)
    try:
        device = devices.pick(given.device)
        runs = measure(device)
    except UserError as error:
        print(f"loss_scale: error: {error}", file=sys.stderr)
        return 2
    what = {"model": words(MODEL), "patch": f"{PATCH}x{PATCH}", "batch": str(BATCH), "lr": str(LR)}
    conditions = results.conditions(device) | what | {"margin": str(MARGIN), "kind": "measured"}
    print(table(runs))
    write(runs, conditions, PICTURE)
    print(f"written: profiling/{PICTURE.name} and {PICTURE.stem}.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
