"""End to end: whole training runs in processes of their own, through the real loaders and loops, on one made-up h5 file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from bench.cases import PATCH
from rdn_fast import devices
from rdn_fast.training.throughput import WARM_UP

LR_SIZE = 351, 510  # DIV2K's five crops at x2, at most
DIFFERENT = 16  # images unless asked for more; the others are hard links to them


class Plan(NamedTuple):
    """The same amount of work for every loop: `ranks` ranks on `device`, `steps` counted steps after the warm-up ones."""

    preset: str
    batch: int
    steps: int
    ranks: int
    device: str
    threads: int  # of a rank on a CPU

    @property
    def images(self) -> int:
        return self.batch * self.ranks * (self.steps + WARM_UP)


class Speeds(NamedTuple):
    """Images per second over all ranks."""

    images_s: float
    seed_images_s: float


class Loop(NamedTuple):
    """One way to train: run(data file, plan)."""

    recipe: str
    dtype: str
    run: Callable[[Path, Plan], Speeds]


def interleave(loops: list[Loop], plans: list[Plan], scale: int, rounds: int) -> dict[tuple[Loop, int], list[Speeds]]:
    """The Speeds of every round for every (loop, ranks), all in turn."""
    speeds = {(loop, plan.ranks): [] for plan in plans for loop in loops}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.h5"
        for _ in range(rounds):
            for plan in plans:
                write_data(data, plan.images, scale)
                for loop in loops:
                    speeds[loop, plan.ranks].append(loop.run(data, plan))
    return speeds


def write_data(
    path: Path, images: int, scale: int, different: int = DIFFERENT, size: tuple[int, int] | None = None
) -> None:
    """An h5 file as the reference's prepare.py writes it, of `images` pairs of noise, `different` of them with pixels of their own.

    `size`: height and width of the LR images; None: DIV2K's, LR_SIZE.
    """
    rng, (height, width) = np.random.default_rng(), size or LR_SIZE
    with h5py.File(path, "w") as file:
        for name, factor in (("lr", 1), ("hr", scale)):
            group = file.create_group(name)
            for i in range(min(images, different)):
                group[str(i)] = rng.integers(0, 256, (factor * height, factor * width, 3), np.uint8)
            for i in range(different, images):
                group[str(i)] = group[str(i % different)]


def run_baseline(data: Path, plan: Plan, recipe: str, dtype: str, options: dict) -> Speeds:
    """bench/loop.py, under torchrun where the plan has several ranks. RuntimeError when it fails."""
    start = (
        ["torch.distributed.run", "--standalone", "--nproc-per-node", str(plan.ranks), "-m"] if plan.ranks > 1 else []
    )
    flags = [
        "--preset",
        plan.preset,
        "--recipe",
        recipe,
        "--dtype",
        dtype,
        "--batch-size",
        str(plan.batch),
        "--device",
        plan.device,
    ]
    out = _run([*start, "bench.loop", str(data), *flags, *(f"--{name}" for name, on in options.items() if on)], plan)
    return Speeds(**json.loads(out.strip().splitlines()[-1]))


def run_rdn_fast(data: Path, plan: Plan, rdb: str) -> Speeds:
    """`rdn-fast train` at its default precision; its speeds are those of metrics.jsonl. RuntimeError when it fails."""
    with tempfile.TemporaryDirectory() as out:
        flags = {
            "preset": plan.preset,
            "patch-size": PATCH,
            "batch-size": plan.batch,
            "epochs": 1,
            "rdb": rdb,
            "device": plan.device,
            "train-file": data,
            "outputs-dir": out,
            "max-steps": plan.steps + WARM_UP,
        }
        start = ["--nproc", str(plan.ranks)] if plan.ranks > 1 else []
        _run(
            [
                "rdn_fast",
                "train",
                *start,
                *(str(word) for name, value in flags.items() for word in (f"--{name}", value)),
            ],
            plan,
        )
        records = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    epoch = next(record for record in records if record["event"] == "epoch")
    return Speeds(epoch["fps_end_to_end"], epoch["fps_seed_window"])


def threads(ranks: int) -> int:
    """CPU threads of each of several ranks."""
    return max(1, devices.count("cpu") // ranks)


def _run(module: list[str], plan: Plan) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": str(plan.threads)}
    done = subprocess.run([sys.executable, "-m", *module], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{module[0]} ended with {done.returncode}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}"
        )
    return done.stdout
