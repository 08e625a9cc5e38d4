"""`rdn-fast tune`: time every impl of the residual dense block for a run, print the tables, remember the fastest."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from rdn_fast import devices
from rdn_fast.commands.tune_modes import cases_of, tune_modes
from rdn_fast.config import ModelConfig, TrainConfig
from rdn_fast.rdb import IMPLS, refusal
from rdn_fast.rdb.autotune import Case, Timing, autotune
from rdn_fast.terminal import print_table


def tune(model_config: ModelConfig, train_config: TrainConfig) -> None:
    """Time all impls anew for a training run, and for evaluation in float32, and print a table of each."""
    device = devices.pick(train_config.device, train_config.device_id)
    if devices.modes(device):
        tune_modes(model_config, train_config, device)
        return
    for case in cases_of(model_config, train_config, device):
        timing = autotune(case)
        print(case.key())  # not the table's title, which rich would wrap at the table's width
        print_table(_table(case, timing))
        print(f"auto: {timing.fastest}")


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
        table.add_row(impl.name, *figures, escape(reason or impl.why))
    return table
