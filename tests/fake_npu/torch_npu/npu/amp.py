"""torch_npu.npu.amp: the vendor's gradient scaler."""

from __future__ import annotations

import os

import torch

from torch_npu.optim import NpuFusedAdam


class GradScaler(torch.amp.GradScaler):
    """torch.amp's scaler; with dynamic=False a static scale that unscales gradients without a check for inf or NaN.

    FAKE_NPU_OVERFLOWS names the spans at whose end the overflow flag of a saturating device is set: "1:3" is the third
    on npu:1.
    """

    _spans = 0  # begun by clear_npu_overflow_flag

    @classmethod
    def clear_npu_overflow_flag(cls) -> None:
        cls._spans += 1

    @classmethod
    def get_npu_overflow_flag(cls) -> bool:
        return f"{torch.accelerator.current_device_index()}:{cls._spans}" in os.environ.get(
            "FAKE_NPU_OVERFLOWS", ""
        ).split(",")

    def __init__(
        self,
        init_scale=65536.0,
        growth_factor=2.0,
        backoff_factor=0.5,
        growth_interval=2000,
        dynamic=True,
        enabled=True,
    ):
        super().__init__("npu", init_scale, growth_factor, backoff_factor, growth_interval, enabled)
        self._dynamic = dynamic

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        if self._enabled and self._dynamic and isinstance(optimizer, NpuFusedAdam):
            raise RuntimeError("dynamic loss scaling with NpuFusedAdam is not known to work: GradScaler(dynamic=False)")
        super().unscale_(optimizer)

    def _unscale_grads_(self, optimizer, inv_scale, found_inf, allow_fp16):
        if self._dynamic:
            return super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        with torch.no_grad():
            for gradient in (
                optimizer.combined_gradients() if isinstance(optimizer, NpuFusedAdam) else _gradients(optimizer)
            ):
                gradient.mul_(inv_scale)
        return {found_inf.device: found_inf}

    def _maybe_opt_step(self, optimizer, optimizer_state, *args, **kwargs):
        if self._dynamic:
            return super()._maybe_opt_step(optimizer, optimizer_state, *args, **kwargs)
        return optimizer.step(*args, **kwargs)

    def update(self, new_scale=None) -> None:
        if self._enabled and not self._dynamic and new_scale is None:
            new_scale = self._scale  # stays, but what was noted of the step is forgotten
        super().update(new_scale)


def _gradients(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
