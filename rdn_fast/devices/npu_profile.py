"""Where a step's time goes on Ascend, as torch_npu's profiler tells it. Never ran on a card."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch

from rdn_fast.devices.streams import synchronize
from rdn_fast.errors import UserError

_TABLE = "op_statistic.csv"


def operators(run: Callable[[], object], device: torch.device) -> list[dict[str, str]]:
    """Call run() once under torch_npu's profiler. Return its table: a row for each type of operator, by its columns.

    Raises UserError where the profiler leaves no table.
    """
    profiler = import_module("torch_npu").profiler
    with tempfile.TemporaryDirectory() as folder:
        with profiler.profile(
            activities=[profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.NPU],
            on_trace_ready=profiler.tensorboard_trace_handler(folder),
            # Level0 makes no table of operators.
            experimental_config=profiler._ExperimentalConfig(profiler_level=profiler.ProfilerLevel.Level1),
        ):
            run()
            synchronize(device)
        if (table := next(Path(folder).rglob(_TABLE), None)) is None:
            names = ", ".join(sorted(file.name for file in Path(folder).rglob("*") if file.is_file())[:10])
            raise UserError(f"torch_npu's profiler left no {_TABLE}, but {names or 'nothing'}")
        with table.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
