"""O0, O1, O2: what a model computes in which dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdn_fast import devices

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """The dtypes of a model's computation. Parameters, their gradients and the optimizer are float32 at every level.

    - O0: everything in float32.
    - O1: convolutions in `compute`; the last convolution and the loss in float32.
    - O2: the last convolution in `compute` too; the loss in float32.

    apex's O1 and O2 differ in who casts, which shows in layers such as batch norm. RDN has none.
    """

    level: str  # "O0", "O1" or "O2"
    compute: torch.dtype
    output: torch.dtype  # of the last convolution
    outer: torch.dtype | None = None  # of the first convolution, the sum with its result, and up-sampling; compute's

    @property
    def scaled(self) -> bool:
        """Whether gradients need a loss scale."""
        return self.level != "O0"

    def apply(self, model) -> None:
        """Set the RDN's dtypes. RDN.computing() sets them for a while only."""
        model.compute_dtype, model.output_dtype, model.outer_dtype = self.compute, self.output, self.outer

    def __str__(self) -> str:
        return f"{self.level} {dtype_name(self.compute)}"


def resolve(opt_level: str, amp_dtype: str, device: torch.device) -> Precision:
    """Return the Precision of "O0", "O1" or "O2" with low_dtype(). auto_level.py resolves "auto"."""
    low = low_dtype(amp_dtype, device)
    compute, output = {"O0": (torch.float32, torch.float32), "O1": (low, torch.float32), "O2": (low, low)}[opt_level]
    return Precision(opt_level, compute, output)


def parse(text: str) -> Precision:
    """Return the Precision whose str() is `text`, such as "O1 bfloat16"."""
    level, compute = text.split()
    dtype = getattr(torch, compute)
    return Precision(level, dtype, dtype if level == "O2" else torch.float32)


def low_dtype(amp_dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype that O1 and O2 compute in. "auto" is the device's usual one."""
    return _DTYPES.get(amp_dtype) or devices.low_precision(device)


def dtype_name(dtype: torch.dtype) -> str:
    """Return "float32" for torch.float32, and so on."""
    return str(dtype).removeprefix("torch.")
