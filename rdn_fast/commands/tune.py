"""`rdn-fast tune`: time every implementation of the dense block for a run, print the tables, remember the fastest."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from rdn_fast import devices
from rdn_fast.commands.tune_modes import cases_of, sweep
from rdn_fast.config import ModelConfig, TrainConfig
from rdn_fast.rdb import IMPLS, refusal
from rdn_fast.rdb.autotune import renew
from rdn_fast.terminal import print_table


def tune(config: ModelConfig, train: TrainConfig) -> None:
    """Time all rows anew for a training run, and for evaluation in float32, and print the tables."""
    device = devices.pick(train.device, train.device_id)
    if devices.modes(device):
        sweep(config, train, device)
        return
    for case in cases_of(config, train, device):
        timing = renew(case)
        table = Table(
            title=escape(case.key()), title_justify="left", caption=f"auto: {timing.fastest}", caption_justify="left"
        )
        for name in ("rdb", "ms", "GFLOP/s", "times naive"):
            table.add_column(name, justify="left" if name == "rdb" else "right")
        table.add_column("")
        for row in IMPLS.values():
            seconds = timing.seconds.get(row.name)
            reason = timing.failed.get(row.name) or refusal(row, device, case.dtype, case.training)
            against = f"{timing.seconds['naive'] / seconds:.2f}" if seconds and "naive" in timing.seconds else ""
            figures = (f"{seconds * 1e3:.2f}", f"{case.flop / seconds / 1e9:.0f}", against) if seconds else ("", "", "")
            table.add_row(row.name, *figures, escape(reason or row.why))
        print_table(table)
