"""rdn_fast as a recipe: the very step of `rdn-fast train` (rdn_fast/training/step.py), between the benchmark's clocks."""

from __future__ import annotations

import torch

from bench.baseline import LOSS_SCALE, LR
from bench.parity import Results, solve_module
from rdn_fast import devices, precision
from rdn_fast.config import ModelConfig
from rdn_fast.model import RDN
from rdn_fast.training.optimizer_step import make_optimizer_step
from rdn_fast.training.step import TrainStep

LEVELS = {torch.float32: ("O0", "auto"), torch.float16: ("O1", "fp16"), torch.bfloat16: ("O1", "bf16")}


def default_dtype(device: torch.device) -> torch.dtype:
    """What `--opt-level auto` computes in."""
    return precision.resolve("auto", "auto", device).compute


class Ours:
    """The model with a row of the RDB table, channels-last where the device takes it, fused Adam with its skip flag."""

    def __init__(self, config: ModelConfig, device: torch.device, dtype: torch.dtype, rdb: str):
        self.device, self.dtype, self.memory_format = device, dtype, devices.memory_format(device)
        self.precision = precision.resolve(*LEVELS[dtype], device)
        self.model = RDN(config, rdb).to(device, memory_format=self.memory_format)
        self.precision.apply(self.model)
        self.note = f"rdb {rdb}"
        self.optimizer = devices.adam(self.model.parameters(), device, LR, weight_decay=0.0, captured=True)
        self.update = make_optimizer_step(self.optimizer, device, 1.0 if dtype == torch.float32 else LOSS_SCALE)
        self._step = TrainStep(self.model, self.optimizer, self.update, device)

    def infer(self, lr: torch.Tensor) -> torch.Tensor:
        """lr: float32 [B, 3, H, W] in `memory_format` -> [B, 3, s*H, s*W] on the device."""
        self.model.eval()
        with torch.inference_mode():
            return self.model(lr)

    def step(self, lr: torch.Tensor, hr: torch.Tensor) -> None:
        """One training step; lr: float32 [B, 3, p, p], hr: float32 [B, 3, s*p, s*p] on the device, in `memory_format`."""
        self._step(lr, hr, torch.full((), 1 / hr.numel(), device=self.device))

    def solve(self, state: dict, x: torch.Tensor, upstream: torch.Tensor) -> Results:
        """Load `state`; output and gradients for the parity check."""
        self.model.load_state_dict(state)
        x = x.to(self.device).contiguous(memory_format=self.memory_format)
        return solve_module(self.model, x, upstream.to(self.device), lambda x: self.model(x).float())
