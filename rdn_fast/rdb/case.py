"""What `--rdb auto` and `--opt-level auto` depend on: device, dtype, shape, and whether it is training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdn_fast import __version__, devices
from rdn_fast.config import ModelConfig

PICTURE = 96  # LR pixels: largest side of the input on which inference is timed
CPU_PICTURE = 64  # the same on a CPU, where a first picture should not wait for long
CPU_PIXELS = 8 * 32 * 32  # LR pixels of a batch: more do not change the ranking on a CPU


@dataclass(frozen=True)
class Case:
    """What the choice depends on: one block on [batch, G0, height, width], with its backward pass if `training`."""

    device: torch.device
    dtype: torch.dtype
    training: bool
    model_config: ModelConfig
    batch: int
    height: int
    width: int
    mode: str = ""  # of the device, devices.mode()

    @classmethod
    def of(cls, model_config: ModelConfig, shape, device: torch.device, dtype: torch.dtype, training: bool) -> Case:
        """Return the case to time for a model's input of `shape` [B, 3, H, W].

        Training is timed at its own shape. Inference sees many sizes: sides are rounded up to multiples of 32, PICTURE
        or CPU_PICTURE at most, and the batch is 1. On a CPU the batch is cut to CPU_PIXELS.
        """
        batch, _, height, width = shape
        if not training:
            largest = CPU_PICTURE if devices.is_host(device) else PICTURE
            batch, height, width = 1, *(min(-(-side // 32) * 32, largest) for side in (height, width))
        if devices.is_host(device):
            batch = min(batch, max(1, CPU_PIXELS // (height * width)))
        return cls(device, dtype, training, model_config, batch, height, width, devices.mode(device))

    def key(self) -> str:
        """Return the text under which a choice is remembered: everything that it depends on, versions included.

        Not the card's index: equal cards share a choice.
        """
        c = self.model_config
        shape = f"{self.batch}x{c.num_features}x{self.height}x{self.width} G{c.growth_rate} C{c.num_layers}"
        where = f"{self.device.type} ({devices.hardware(self.device)})"
        words = where, str(self.dtype), shape, "training" if self.training else "inference"
        mode = (f"mode {self.mode}",) if self.mode else ()
        return ", ".join((*words, *mode, f"torch {torch.__version__}", f"rdn_fast {__version__}"))

    @property
    def flop(self) -> int:
        """Floating-point operations: those of the forward pass, three times as many in training."""
        return 2 * (3 if self.training else 1) * self.model_config.block_macs * self.batch * self.height * self.width
