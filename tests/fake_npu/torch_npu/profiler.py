"""torch_npu.profiler: the vendor's names for torch's profiler, which here sees the host's side only."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch
from torch.profiler import schedule, tensorboard_trace_handler

__all__ = ["ProfilerLevel", "_ExperimentalConfig", "profile", "schedule", "tensorboard_trace_handler"]


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


def profile(*, experimental_config: _ExperimentalConfig | None = None, **settings) -> torch.profiler.profile:
    """torch.profiler.profile with the vendor's settings checked and left out."""
    if experimental_config is not None and not isinstance(experimental_config, _ExperimentalConfig):
        raise TypeError("profile: experimental_config must be a torch_npu.profiler._ExperimentalConfig")
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], **settings)
