"""End to end: whole training runs in processes of their own, through the real loaders and loops."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from bench import ceilings, process, tables
from bench.case import CPUS, Case, Entry, Gate
from bench.loop import train, write_h5
from bench.measure import Bench, ratios
from bench.models import PATCH, reference_dtype, words
from bench.results import STEADY
from bench.timing import Times, interleave, repeat
from rdn_fast import devices
from rdn_fast.config import ModelConfig, make_configs
from rdn_fast.precision import dtype_name
from rdn_fast.training.throughput import WARM_UP

NAME, LONG = "end to end", "long run"
ROUNDS = 3
SPAN, LEAST = 8.0, 5  # seconds that a process counts, about; steps, at least


class Plan(NamedTuple):
    """Work for a loop; `steps` are counted ones, after those of the warm-up."""

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
        sizes = (2, 12) if bench.on_cpu else (64, 200)
        compare(bench, [Plan("rdn-b", *sizes, 1, str(bench.device), threads(1))], ROUNDS)
        return
    sizes = ("demo", 8, 40) if bench.on_cpu else ("rdn-b", 64, 200)
    plans = [Plan(*sizes, ranks, bench.device.type, threads(bench.ranks)) for ranks in (1, bench.ranks)]
    compare(bench, plans, ROUNDS)


def compare(bench: Bench, plans: list[Plan], rounds: int) -> None:
    """Train by reference, strongest stock and rdn_fast in turn; several numbers of ranks also tell how they scale.

    Rows are written as soon as they are measured, and again with every further round. A loop that fails is left out.
    """
    preset, batch, *_ = plans[0]
    model_config = make_configs({}, preset)[0]
    print(f"\n{NAME}, preset {preset}, batch {batch} a rank, ranks {', '.join(str(plan.ranks) for plan in plans)}")
    stock, stock_dtype, options = bench.strongest_stock()
    plain = reference_dtype(bench.device)
    loops = [
        Entry("reference", plain, partial(run_baseline, recipe="reference", dtype=plain, options={})),
        Entry(stock, stock_dtype, partial(run_baseline, recipe="stock", dtype=stock_dtype, options=options)),
        Entry("rdn_fast", bench.default, partial(run_rdn_fast, impl=bench.impl)),
    ]
    in_turn(bench, bench.in_order(loops), plans, model_config, rounds)


def in_turn(
    bench: Bench, loops: list[Entry], plans: list[Plan], model_config: ModelConfig, rounds: int
) -> tuple[dict, dict]:
    """Run each entry's build(data file, plan) -> Speeds in turn with the ceilings, and write the rows.

    Return {ranks: {entry: (Times of a step, Times of it in the seed window)}} and {Ceiling: Times}.
    """
    speeds = {
        plan.ranks: {
            entry: tuple(bench.times(NAME, plan.ranks, *entry[:2], window, keep=rounds) for window in ("all", "seed"))
            for entry in loops
        }
        for plan in plans
    }
    plain = ceilings.contenders(bench.device, [entry.dtype for entry in loops])
    roofs = {ceiling: bench.times(NAME, ceiling, keep=rounds) for ceiling in plain}

    def turn() -> None:
        for ceiling, mine in interleave(plain, bench.device, 1).items():
            roofs[ceiling].every.extend(mine.every)
        bench.ceilings(roofs, plans[0].batch, f"{NAME}, {words(model_config, PATCH, PATCH)}")
        for plan in plans:
            for entry in list(speeds[plan.ranks]):
                given = plan._replace(steps=counted_steps(bench, entry, plan))
                write_h5(data, given.images, model_config.scale)
                try:
                    found = entry.build(data, given)
                except RuntimeError as error:
                    leave_out(entry, error)
                    continue
                for times, speed in zip(speeds[plan.ranks][entry], found, strict=True):
                    times.every.append(plan.batch * plan.ranks / speed)
                write_rows(bench, plans, speeds, model_config)

    def leave_out(entry: Entry, error: RuntimeError) -> None:
        bench.fail(f"{NAME}, {entry.recipe}: {error}")
        print(f"  {entry.recipe} is left out: {error}")
        for mine in speeds.values():
            mine.pop(entry, None)

    def settled() -> bool:
        return all(times.spread <= STEADY for mine in speeds.values() for times, _ in mine.values())

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.h5"
        repeat(turn, rounds, settled)
    return speeds, roofs


def write_rows(bench: Bench, plans: list[Plan], speeds: dict, model_config: ModelConfig) -> None:
    """Write a row for each of in_turn()'s `speeds` that is measured by now; it replaces the one of fewer rounds."""
    preset, batch = plans[0].preset, plans[0].batch
    shape, macs = words(model_config, PATCH, PATCH), model_config.macs(PATCH, PATCH)
    note = "" if preset == "rdn-b" else f"not comparable: preset {preset}, {plans[0].threads} CPU threads a rank"
    for plan in plans:
        patches = batch * plan.ranks
        mine = {entry: both for entry, both in speeds[plan.ranks].items() if both[0].every}
        for entry, (times, window) in mine.items():
            figures = ratios(entry, {each: both[0] for each, both in mine.items()})
            # The strongest stock is the only one here, whatever its dtype.
            figures |= {"vs_stock": figures.get("vs_other"), "seed_images_s": patches / window.median}
            if plan.ranks > 1:
                figures["efficiency"] = times.over(speeds[1][entry][0])
            images = patches / times.median
            # A CPU's ranks share the cores whose ceiling was measured.
            figures |= {
                "images_s": images,
                "gflops": images * 6 * macs / 1e9,
                "cards": 1 if bench.on_cpu else plan.ranks,
            }
            bench.row(NAME, entry.recipe, entry.dtype, patches, shape, times, ranks=plan.ranks, note=note, **figures)


def counted_steps(bench: Bench, entry: Entry, plan: Plan) -> int:
    """Return for how many steps SPAN lasts, by the training steps measured in this run; else the plan's."""
    wanted = (
        "training step",
        entry.recipe,
        dtype_name(entry.dtype),
        words(make_configs({}, plan.preset)[0], PATCH, PATCH),
    )
    rows = (row for row in bench.results.rows if (row.case, row.recipe, row.dtype, row.shape) == wanted)
    speed = next((row.images_s for row in rows if row.images_s), None)
    return max(LEAST, round(SPAN * speed / plan.batch)) if speed and plan.ranks == 1 else plan.steps


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


_CPU, _ANY = {"batch": 2, "places": CPUS}, "CPU, end to end, default precision / strongest stock in any precision"
_H100 = {"dtype": "float16", "batch": 64, "places": ("h100",)}
_ASCEND, _EIGHT = {"dtype": "float16", "batch": 64, "places": ("npu",)}, {"batch": 512, "ranks": 8}
_SCALING = 4337 / (8 * 544)
CASE = Case(
    order=50,
    rows=(NAME, LONG),
    commands=("1p", "8p", "amx", "all", "long_run"),
    run=run,
    gates=(
        Gate("CPU, end to end, default precision / reference (fp32)", NAME, "vs_reference", 1.9, 2.9, **_CPU),
        Gate(_ANY, NAME, "vs_stock", 0.95, 1.2, **_CPU),
        Gate("H100, end to end, fp16 O1 / reference under AMP", NAME, "vs_reference", 2.0, **_H100),
        Gate("H100, end to end, fp16 O1, images/s", NAME, "images_s", 3200, 4337, **_H100),
        Gate("one Ascend card, images/s in the seed window", NAME, "seed_images_s", 544, **_ASCEND),
        Gate("eight Ascend cards, images/s in the seed window", NAME, "seed_images_s", 4337, **_ASCEND | _EIGHT),
        Gate("eight Ascend cards, scaling efficiency", NAME, "efficiency", _SCALING, **_ASCEND | _EIGHT),
    ),
    **tables.MODEL_SPEEDS | {"chart": None, "shows": lambda row: row.case == NAME and tables.is_rdn_b(row)},
)
