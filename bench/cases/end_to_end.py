"""End to end: whole training runs in processes of their own, through the real loaders and loops."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from bench import baseline, process, tables
from bench.case import Case, Gate
from bench.loop import train, write_h5
from bench.measure import Bench
from bench.models import PATCH, words
from bench.timing import Times
from rdn_fast import devices
from rdn_fast.config import make_configs
from rdn_fast.precision import dtype_name
from rdn_fast.training.throughput import WARM_UP

NAME, LONG = "end to end", "long run"


class Plan(NamedTuple):
    """The same amount of work for every loop; `steps` are counted ones, after those of the warm-up."""

    preset: str
    batch: int  # of a rank
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


def run(bench: Bench, command: str) -> None:
    """Train rdn-b on one device. In `8p`, on several ranks and on one; on a CPU, whose ranks share it, a smaller model.

    `long_run`: rdn_fast alone, long enough for its speed to be steady.
    """
    if command == "long_run":
        long_run(bench, "rdn-b", 64, steps=600)
        return
    if command != "8p":
        sizes = (2, 3) if bench.on_cpu else (64, 60)
        compare(bench, [Plan("rdn-b", *sizes, 1, str(bench.device), threads(1))], rounds=2)
        return
    sizes = ("demo", 8, 8) if bench.on_cpu else ("rdn-b", 64, 60)
    plans = [Plan(*sizes, ranks, bench.device.type, threads(bench.ranks)) for ranks in (1, bench.ranks)]
    compare(bench, plans, rounds=2 if bench.on_cpu else 3)


def compare(bench: Bench, plans: list[Plan], rounds: int) -> None:
    """Train by reference, strongest stock and rdn_fast in turn; several numbers of ranks also tell how they scale."""
    preset, batch, *_ = plans[0]
    model_config = make_configs({}, preset)[0]
    print(f"\n{NAME}, preset {preset}, batch {batch} a rank, ranks {', '.join(str(plan.ranks) for plan in plans)}")
    plain = torch.float32 if bench.on_cpu else bench.default
    stock, stock_dtype, options = strongest_stock(bench)
    dtypes = {"reference": plain, stock: stock_dtype, "rdn_fast": bench.default}
    loops = {
        "reference": partial(run_baseline, recipe="reference", dtype=plain, options={}),
        stock: partial(run_baseline, recipe="stock", dtype=stock_dtype, options=options),
        "rdn_fast": partial(run_rdn_fast, impl=bench.impl),
    }
    try:
        speeds = interleave(loops, plans, model_config.scale, rounds)
    except RuntimeError as error:
        bench.fail(f"{NAME}: {error}")
        return
    note = "" if preset == "rdn-b" else f"not comparable: preset {preset}, {plans[0].threads} CPU threads a rank"
    shape, macs = words(model_config, PATCH, PATCH), model_config.macs(PATCH, PATCH)
    times = {
        (recipe, ranks): Times([batch * ranks / speed.images_s for speed in measured])
        for (recipe, ranks), measured in speeds.items()
    }
    for ranks in (plan.ranks for plan in plans):
        for recipe, dtype in dtypes.items():
            mine = times[recipe, ranks]
            images, window = (statistics.median(values) for values in zip(*speeds[recipe, ranks], strict=True))
            ratios = {"vs_reference": mine.over(times["reference", ranks]), "vs_stock": mine.over(times[stock, ranks])}
            if ranks > 1:
                ratios["efficiency"] = mine.over(times[recipe, 1])
            # A CPU's ranks share the cores whose ceiling was measured.
            speed = {"images_s": images, "gflops": images * 6 * macs / 1e9, "cards": 1 if bench.on_cpu else ranks}
            more = {"ranks": ranks, "seed_images_s": window, "note": note, **ratios}
            bench.row(NAME, recipe, dtype, batch * ranks, shape, mine, **speed, **more)


def long_run(bench: Bench, preset: str, batch: int, steps: int) -> None:
    model_config = make_configs({}, preset)[0]
    plan = Plan(preset, batch, steps, 1, bench.device.type, threads(1))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.h5"
        write_h5(data, plan.images, model_config.scale)
        speeds = run_rdn_fast(data, plan, bench.impl)
    figures = {"gflops": speeds.images_s * 6 * model_config.macs(PATCH, PATCH) / 1e9, **speeds._asdict()}
    shape, times = words(model_config, PATCH, PATCH), Times([batch / speeds.images_s])
    bench.row(LONG, "rdn_fast", bench.default, batch, shape, times, note=f"{steps} steps", **figures)


def strongest_stock(bench: Bench) -> tuple[str, torch.dtype, dict]:
    """Return name, dtype and options of the stock recipe that trained fastest in this run, whatever its dtype."""
    steps = [row for row in bench.results.rows if row.case == "training step" and row.kind == "measured"]
    stock = [row for row in steps if row.recipe.startswith("stock")]
    fastest = max(stock, key=lambda row: row.images_s, default=None)
    name, dtype = (fastest.recipe, getattr(torch, fastest.dtype)) if fastest else ("stock", bench.dtypes[-1])
    return name, dtype, baseline.stock_variants(bench.device, dtype, training=True)[name.removeprefix("stock")]


def interleave(loops: dict[str, Callable], plans: list[Plan], scale: int, rounds: int) -> dict[tuple, list[Speeds]]:
    """Return {(recipe, ranks): the Speeds of every round} of {recipe: loop(data file, plan) -> Speeds}, all in turn."""
    speeds = {(recipe, plan.ranks): [] for plan in plans for recipe in loops}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.h5"
        for _ in range(rounds):
            for plan in plans:
                write_h5(data, plan.images, scale)
                for recipe, loop in loops.items():
                    speeds[recipe, plan.ranks].append(loop(data, plan))
    return speeds


def run_baseline(data: Path, plan: Plan, recipe: str, dtype: torch.dtype, options: dict) -> Speeds:
    """Run bench/loop.py, under torchrun if the plan has several ranks."""
    given = str(data), plan.preset, recipe, dtype_name(dtype), plan.batch, plan.device, options
    return Speeds(*process.call(train, *given, ranks=plan.ranks, OMP_NUM_THREADS=str(plan.threads)))


def run_rdn_fast(data: Path, plan: Plan, impl: str) -> Speeds:
    """Run `rdn-fast train` at its default precision. The speeds are those of its metrics.jsonl."""
    with tempfile.TemporaryDirectory() as out:
        given = {"preset": plan.preset, "patch-size": PATCH, "batch-size": plan.batch, "epochs": 1, "rdb": impl}
        given |= {"device": plan.device, "train-file": data, "outputs-dir": out, "max-steps": plan.steps + WARM_UP}
        given |= {"nproc": plan.ranks} if plan.ranks > 1 else {}
        flags = [f"--{name}={value}" for name, value in given.items()]
        process.run_module("rdn-fast train", ["rdn_fast", "train", *flags], OMP_NUM_THREADS=str(plan.threads))
        records = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    epoch = next(record for record in records if record["event"] == "epoch")
    return Speeds(epoch["fps_end_to_end"], epoch["fps_seed_window"])


def threads(ranks: int) -> int:
    """Return the CPU threads of each of several ranks."""
    return max(1, devices.count("cpu") // ranks)


_H100 = {"dtype": "float16", "batch": 64, "places": ("h100",)}
_ASCEND, _EIGHT = {"dtype": "float16", "batch": 64, "places": ("npu",)}, {"batch": 512, "ranks": 8}
_SCALING = 4337 / (8 * 544)
CASE = Case(
    order=50,
    rows=(NAME, LONG),
    commands=("1p", "8p", "all", "long_run"),
    run=run,
    gates=(
        Gate("H100, end to end, fp16 O1 / reference under AMP", NAME, "vs_reference", 2.0, **_H100),
        Gate("H100, end to end, fp16 O1, images/s", NAME, "images_s", 3200, 4337, **_H100),
        Gate("one Ascend card, images/s in the seed window", NAME, "seed_images_s", 544, **_ASCEND),
        Gate("eight Ascend cards, images/s in the seed window", NAME, "seed_images_s", 4337, **_ASCEND | _EIGHT),
        Gate("eight Ascend cards, scaling efficiency", NAME, "efficiency", _SCALING, **_ASCEND | _EIGHT),
    ),
    **tables.MODEL_SPEEDS | {"chart": None, "shows": lambda row: row.case == NAME and tables.is_rdn_b(row)},
)
