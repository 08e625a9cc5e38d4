"""`python -m profiling.loss_scale`: what the loss scale does to fp16 training, as loss_scale.csv and loss_scale.svg.

A small RDN is trained on scikit-image's photographs by `rdn-fast train`: in float32 from several seeds, and in fp16 (O1
and O2) from the first seed at powers of two from far too small to far too large. Underflow hurts if the mean loss of
the last steps is above that of float32, same seed, by more than float32's seeds lie apart. Overflow begins where a step
is skipped. Both edges are narrowed down to a factor of two. The tuned scale is what `--loss-scale-value auto` chooses.
How much room it needs is shown by the largest gradients along a float32 run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

import torch

from bench import results
from bench.models import words
from profiling.loss_scale_edges import LAST, LEVELS, POINT, STEPS, Run, between, table, write
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
SEEDS = (123, 1, 2, 3)
COARSE = range(-16, 25, 8)  # exponents of the scales that are tried first
ALONG = (0, 1, 4, 16, 64, STEPS)  # steps after which gradients are measured, in float32 at a rate that stays


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
        given = {key: value for key, value in dataclasses.asdict(MODEL).items() if value not in (None, False)}
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
