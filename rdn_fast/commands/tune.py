"""`rdn-fast tune`: time every impl of the residual dense block for a run, print the tables, remember the choices."""

from __future__ import annotations

from dataclasses import replace

from rich.table import Table

from rdn_fast import devices, precision
from rdn_fast.auto_level import compare, needs_timing, whole
from rdn_fast.commands.tune_modes import cases_of, tune_modes
from rdn_fast.config import ModelConfig, TrainConfig
from rdn_fast.precision import dtype_name
from rdn_fast.rdb import IMPLS, refusal
from rdn_fast.rdb.autotune import autotune
from rdn_fast.rdb.case import Case
from rdn_fast.rdb.measure import REST, Timing
from rdn_fast.rdb.rounds import MARGIN
from rdn_fast.terminal import cell, print_line, print_table


def tune(model_config: ModelConfig, train_config: TrainConfig) -> None:
    """Time all impls anew for a training run, and for evaluation in float32, and print a table of each.

    Where `--opt-level auto` is chosen by timing, the run's are timed in float32 and in low precision.
    """
    device = devices.pick(train_config.device, train_config.device_id)
    if devices.modes(device):
        tune_modes(model_config, train_config, device)
        return
    if devices.is_host(device):
        devices.keep_freed_memory()  # as training does
    c, low = train_config, precision.resolve("O1", train_config.amp_dtype, device)
    if c.opt_level == "auto" and needs_timing(device, low.compute):
        training, evaluation = cases_of(model_config, replace(c, opt_level="O0"), device)
        comparison = compare(training, low)
        for case, timing in zip(comparison.cases, comparison.timings, strict=True):
            _show(case, timing)
        if comparison.models:
            times = (f"{dtype_name(case.dtype)} {min(own) * 1e3:.2f} ms" for case, own in comparison.models.items())
            print_line(f"close or unsteady, so whole models were timed: {', '.join(times)}")
        level = comparison.verdict
        print_line(f"--opt-level auto: {precision.resolve(level.choice, c.amp_dtype, device)}{_note(level.settled)}")
    else:
        training, evaluation = cases_of(model_config, c, device)
        _show(training, autotune(training))
    _show(evaluation, autotune(evaluation))


def _show(case: Case, timing: Timing) -> None:
    print_line(case.key())  # not the table's title, which rich would wrap at the table's width
    print_table(_table(case, timing))
    if timing.rounds:
        print_line(f"--rdb auto: {timing.verdict.choice}{_note(timing.verdict.settled)}")
    if model := whole(case, timing):
        blocks = f"with {case.model_config.num_blocks} by {timing.verdict.choice}"
        print_line(f"{REST}: {min(timing.rest) * 1e3:.2f} ms; {blocks}: {min(model) * 1e3:.2f} ms")


def _note(settled: bool) -> str:
    return "" if settled else f" (not clearly: another is within {MARGIN - 1:.0%} or so; trusted for a day)"


def _table(case: Case, timing: Timing) -> Table:
    table = Table("rdb")
    for heading in ("ms", "GFLOP/s", "times naive"):
        table.add_column(heading, justify="right")
    table.add_column("")
    naive = timing.seconds.get("naive")
    for impl in IMPLS.values():
        seconds = timing.seconds.get(impl.name)
        reason = timing.failed.get(impl.name) or refusal(impl, case.device, case.dtype, case.training)
        figures = [""] * 3
        if seconds:
            speedup = f"{naive / seconds:.2f}" if naive else ""
            figures = [f"{seconds * 1e3:.2f}", f"{case.flop / seconds / 1e9:.0f}", speedup]
        table.add_row(impl.name, *figures, cell(reason or impl.why))
    return table
