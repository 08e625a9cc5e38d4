"""`python -m profiling.learning`: does the demo preset learn as well in bf16 on a CPU, and by amx, as in float32?

Trains on the demo's photographs by each of RECIPES from each of SEEDS; the runs of a seed begin with the same weights
and see the same patches. Validation of the last weights is float32 throughout, so runs differ by their training alone.
Where the processor has no tiles, amx is its build in plain C, which computes the same bits, slowly. Prints a table of
Markdown for LOG.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from bench import results
from rdn_fast.commands.demo import prepare
from rdn_fast.config import PRESETS, make_configs
from rdn_fast.errors import UserError
from rdn_fast.rdb import amx, in_c
from rdn_fast.training.run import train

SEEDS = 123, 1, 2
RECIPES = ("O0", "winograd"), ("O1", "naive"), ("O1", "amx")
DTYPES = {"O0": "float32", "O1": "bf16"}


class Learnt(NamedTuple):
    """PSNR-Y on the held-out photographs in dB, and the mean loss of the last tenth of the steps."""

    psnr: float
    loss: float


def learn(folder: Path, files: tuple[Path, Path], steps: int, seed: int, level: str, impl: str) -> Learnt:
    """Train the demo preset for `steps` and return the result. files: for training and for validation."""
    given = {"outputs_dir": str(folder), "train_file": str(files[0]), "eval_file": str(files[1]), "device": "cpu"}
    given |= {"max_steps": steps, "eval_every": 10**6, "seed": seed, "opt_level": level, "amp_dtype": "bf16"}
    train(*make_configs(given | {"rdb": impl}, "demo"))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [record["loss"] for record in records if record["event"] == "step"]
    (psnr,) = (record["psnr_y"] for record in records if "psnr_y" in record)
    return Learnt(psnr, fmean(losses[-max(1, steps // 10) :]))


def measure(steps: int, seeds: tuple[int, ...] = SEEDS) -> dict[tuple[str, str], list[Learnt]]:
    """Return {recipe: a result for each seed}."""
    found = {recipe: [] for recipe in RECIPES}
    with tempfile.TemporaryDirectory() as folder:
        files = prepare(Path(folder))
        for seed in seeds:
            for level, impl in RECIPES:
                found[level, impl].append(learn(Path(folder, f"{seed}_{impl}"), files, steps, seed, level, impl))
    return found


def table(found: dict[tuple[str, str], list[Learnt]], seeds: tuple[int, ...], build: str) -> list[str]:
    """Return Markdown: a line per recipe. build: what is said of amx's."""
    lines = [
        f"| dtype | rdb | {' | '.join(f'seed {seed}' for seed in seeds)} | mean, dB | less float32 | loss |",
        f"| --- | --- |{' --: |' * (len(seeds) + 3)}",
    ]
    base = fmean(run.psnr for run in found[RECIPES[0]])
    for (level, impl), runs in found.items():
        mean, loss = fmean(run.psnr for run in runs), fmean(run.loss for run in runs)
        psnrs = " | ".join(f"{run.psnr:.3f}" for run in runs)
        name = impl + (build if impl == "amx" else "")
        lines.append(f"| {DTYPES[level]} | {name} | {psnrs} | {mean:.3f} | {mean - base:+.3f} | {loss:.5f} |")
    return lines


def any_build() -> str:
    """Let amx run here: by the processor's tiles, else in plain C. Return what the table says of it."""
    if amx.missing() is None:
        return ""
    amx.block.kernels = in_c.Kernels(amx.SOURCE, amx.PLAIN)
    return " (plain build)"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = PRESETS["demo"]["max_steps"]
    parser.add_argument("--steps", type=int, default=usual, help="of each run (default: the preset's, %(default)s)")
    steps, build = parser.parse_args(argv).steps, any_build()
    try:
        found = measure(steps)
    except UserError as error:
        print(f"learning: error: {error}", file=sys.stderr)
        return 2
    conditions = results.conditions(torch.device("cpu")).items()
    print("", ", ".join(f"{name} {value}" for name, value in conditions), f"{steps} steps of the demo preset", sep="\n")
    print("", *table(found, SEEDS, build), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
