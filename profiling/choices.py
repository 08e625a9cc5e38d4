"""`python -m profiling.choices`: what `--opt-level auto` and `--rdb auto` take, against all others, for training steps.

For each preset every implementation that can train is timed in float32 (O0) and in low precision (O1), in turn, best of
rounds, and the choice is made anew as `rdn-fast tune` makes it. Steps have the preset's model and patch, and on a CPU
as many patches as the choice is made with (rdb/case.py). Prints a table of Markdown for LOG.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from bench import results
from bench.case import Contender
from bench.models import ours, words
from bench.timing import once
from rdn_fast import devices, precision
from rdn_fast.auto_level import compare, needs_timing
from rdn_fast.config import ModelConfig, TrainConfig, make_configs
from rdn_fast.errors import UserError
from rdn_fast.precision import dtype_name
from rdn_fast.rdb import able
from rdn_fast.rdb.autotune import autotune
from rdn_fast.rdb.case import Case
from rdn_fast.rdb.rounds import Rounds, run_rounds

PRESETS = ("demo", "small", "rdn-b")
BUDGET = 10.0  # seconds for rounds beyond the usual ones
Choice = tuple[str, str]  # a dtype's name and an impl's


def choose(model_config: ModelConfig, shape: tuple, device: torch.device) -> Choice:
    """Return what auto takes to train on patches of `shape` [B, 3, p, p], timed now."""
    low = precision.resolve("O1", "auto", device)
    case = Case.of(model_config, shape, device, torch.float32, True)
    if needs_timing(device, low.compute):
        comparison = compare(case, low)
        number = comparison.verdict.choice == "O1"
        case, timing = comparison.cases[number], comparison.timings[number]
    else:
        case = case if devices.is_host(device) else dataclasses.replace(case, dtype=low.compute)
        timing = autotune(case)
    return dtype_name(case.dtype), timing.verdict.choice


def steps(model_config: ModelConfig, shape: tuple, device: torch.device) -> Rounds:
    """Return the seconds of training steps, {(dtype, impl): one a round}, timed in turn."""
    low = devices.low_precision(device)
    dtypes = [torch.float32, low] if devices.has_instructions(device, low) else [torch.float32]
    contenders = {
        (dtype_name(dtype), impl.name): _step(model_config, shape, device, dtype, impl.name)
        for dtype in dtypes
        for impl in able(device, dtype, True)
    }

    def leave_out(key: Choice, error: Exception) -> None:
        print(f"note: left out {' '.join(key)}: {error}", file=sys.stderr)

    return run_rounds(contenders, lambda _: False, leave_out, BUDGET)


def _step(model_config: ModelConfig, shape: tuple, device: torch.device, dtype: torch.dtype, impl: str) -> Callable:
    """Return a contender of run_rounds(): training steps on random patches."""
    recipe, scale = ours(model_config, device, dtype, impl), model_config.scale
    batch, channels, height, width = shape
    fresh = partial(recipe.random, shape, (batch, channels, scale * height, scale * width))
    return partial(once, Contender(recipe.step, fresh), device)


def cut(model_config: ModelConfig, train_config: TrainConfig, device: torch.device) -> tuple[int, int, int, int]:
    """Return the shape [B, 3, p, p] of the steps to time."""
    p = train_config.patch_size
    case = Case.of(model_config, (train_config.batch_size, 3, p, p), device, torch.float32, True)
    return case.batch, 3, p, p


def table(preset: str, rounds: Rounds, choice: Choice) -> list[str]:
    """Return Markdown: a line per contender, the fastest first, and one about the choice."""
    best = {key: min(seconds) for key, seconds in rounds.items()}
    fastest = min(best.values())
    lines = [
        "| preset | dtype | rdb | ms a step | of the best | rounds | |",
        "| --- | --- | --- | --: | --: | --: | --- |",
    ]
    for key, seconds in sorted(best.items(), key=lambda item: item[1]):
        figures = f"{seconds * 1e3:.4g} | {seconds / fastest:.2f} | {len(rounds[key])}"
        lines.append(f"| {preset} | {' | '.join(key)} | {figures} | {'auto' if key == choice else ''} |")
    slower = f"{best[choice] / fastest - 1:.1%} slower than the best" if choice in best else "not among them"
    return [*lines, f"\n{preset}: auto takes {' '.join(choice)}, {slower}"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda[:i] or npu[:i]")
    parser.add_argument("--preset", choices=PRESETS, help="of this one alone")
    given = parser.parse_args(argv)
    try:
        device = devices.pick(given.device)
        if devices.is_host(device):
            devices.keep_freed_memory()  # as training does
        print(*(f"{name} {value}" for name, value in results.conditions(device).items()), sep=", ")
        for preset in [given.preset] if given.preset else PRESETS:
            model_config, train_config = make_configs({}, preset)
            batch, _, height, width = shape = cut(model_config, train_config, device)
            began = time.monotonic()
            choice = choose(model_config, shape, device)
            chosen = time.monotonic() - began
            rounds = steps(model_config, shape, device)
            size = f"{batch} patches of {height}x{width}"
            print(f"\n{words(model_config)}, {size}; auto took {chosen:.1f} s to choose\n")
            print(*table(preset, rounds, choice), sep="\n", flush=True)
    except UserError as error:
        print(f"choices: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
