"""torch_npu.profiler: the vendor's names for torch's profiler, which here sees the host's side only."""

from __future__ import annotations

import csv
import enum
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import schedule

__all__ = [
    "ProfilerActivity",
    "ProfilerLevel",
    "_ExperimentalConfig",
    "profile",
    "schedule",
    "tensorboard_trace_handler",
]


class ProfilerActivity(enum.Enum):
    """Which side is recorded."""

    CPU = "CPU"
    NPU = "NPU"


class ProfilerLevel(enum.Enum):
    """How much of the device is recorded."""

    Level_none = "Level_none"
    Level0 = "Level0"
    Level1 = "Level1"
    Level2 = "Level2"


@dataclass(frozen=True)
class _ExperimentalConfig:
    """The vendor's further settings; of them only the level is known here."""

    profiler_level: ProfilerLevel = ProfilerLevel.Level0


def profile(
    *, activities=None, experimental_config: _ExperimentalConfig | None = None, **settings
) -> torch.profiler.profile:
    """torch.profiler.profile with the vendor's settings checked and left out."""
    if experimental_config is not None and not isinstance(experimental_config, _ExperimentalConfig):
        raise TypeError("profile: experimental_config must be a torch_npu.profiler._ExperimentalConfig")
    if not all(isinstance(activity, ProfilerActivity) for activity in activities or ()):
        raise TypeError("profile: activities must be of torch_npu.profiler.ProfilerActivity")
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], **settings)
    profiler.level = (experimental_config or _ExperimentalConfig()).profiler_level
    return profiler


def tensorboard_trace_handler(dir_name: str) -> Callable[[torch.profiler.profile], None]:
    """Return a handler that writes the files of the vendor's that rdn_fast reads: from Level1 on, op_statistic.csv.

    Its columns are the vendor's; its rows are the host's operators.
    """

    def write(profiler: torch.profiler.profile) -> None:
        folder = Path(dir_name, "host_1_20260101_ascend_pt", "ASCEND_PROFILER_OUTPUT")
        folder.mkdir(parents=True)
        profiler.export_chrome_trace(str(folder / "trace_view.json"))
        if profiler.level not in (ProfilerLevel.Level1, ProfilerLevel.Level2):
            return
        averages = profiler.key_averages()
        total = sum(average.self_cpu_time_total for average in averages) or 1
        with (folder / "op_statistic.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["Device_id", "OP Type", "Core Type", "Count", "Total Time(us)", "Avg Time(us)", "Ratio(%)"])
            for one in averages:
                spent = one.self_cpu_time_total
                rows.writerow([0, one.key, "simulated", one.count, spent, spent / one.count, 100 * spent / total])

    return write
