"""O0, O1, O2: what a model computes in which dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdn_fast import devices

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

    @property
    def scaled(self) -> bool:
        """Whether gradients need a loss scale."""
        return self.level != "O0"

    def apply(self, model) -> None:
        """Make an RDN compute so."""
        model.compute_dtype, model.output_dtype = self.compute, self.output

    def __str__(self) -> str:
        return f"{self.level} {str(self.compute).removeprefix('torch.')}"


def choose(level: str, amp_dtype: str, device: torch.device) -> Precision:
    """The Precision for these settings; `auto` levels and dtypes depend on the device."""
    if level == "auto":
        level = "O1" if devices.low_precision_pays(device) else "O0"
    if level == "O0":
        return Precision("O0", torch.float32, torch.float32)
    low = _DTYPES.get(amp_dtype) or devices.low_precision(device)
    return Precision(level, low, torch.float32 if level == "O1" else low)
