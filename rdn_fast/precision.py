"""O0, O1, O2 with a static loss scale, and the optimizer step that skips overflowed gradients without asking the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdn_fast import device as devices

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """What computes in which dtype; parameters, their gradients and the optimizer are float32 at every level.

    O0: everything in float32. O1: convolutions in `compute`, the last one and the loss in float32. O2: the last one in
    `compute` too. (apex's O1 and O2 differ in who casts; RDN has no layer, such as batch norm, where that shows.)
    """

    level: str
    compute: torch.dtype
    output: torch.dtype
    loss_scale: float

    def apply(self, model) -> None:
        """Make an RDN compute so."""
        model.compute_dtype, model.output_dtype = self.compute, self.output

    def __str__(self) -> str:
        if self.level == "O0":
            return "O0 float32"
        return f"{self.level} {str(self.compute).removeprefix('torch.')}, loss scale {self.loss_scale:g}"


def choose(level: str, amp_dtype: str, loss_scale: float, device: torch.device) -> Precision:
    """The Precision for these settings; `auto` levels and dtypes depend on the device. O0 needs no loss scale: it is 1 there."""
    if level == "auto":
        level = "O1" if devices.low_precision_pays(device) else "O0"
    if level == "O0":
        return Precision("O0", torch.float32, torch.float32, 1.0)
    low = _DTYPES.get(amp_dtype) or devices.low_precision(device)
    return Precision(level, low, torch.float32 if level == "O1" else low, loss_scale)


def step(optimizer: torch.optim.Optimizer, loss_scale: float, clip: float | None) -> torch.Tensor:
    """One optimizer step from gradients of loss_scale * loss, their whole norm limited to `clip`.

    A step with a gradient that is not finite changes nothing. Returns whether it was skipped: float32 [] on the device, 0 or 1.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    skipped = torch.isfinite(norm).logical_not().float()
    divisor = None
    if clip is not None:
        divisor = torch.clamp(norm / clip, min=loss_scale)
    elif loss_scale != 1:
        divisor = torch.full_like(norm, loss_scale)
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.grad_scale, optimizer.found_inf = divisor, skipped
        optimizer.step()
    elif not skipped.item():  # optimizers that take no flag cost one read by the host
        if divisor is not None:
            torch._foreach_div_(gradients, divisor)
        optimizer.step()
    return skipped
