"""`--opt-level auto`: float32 or low precision, by the faster impl of each on the device and shape at hand."""

from __future__ import annotations

from dataclasses import replace

import torch

from rdn_fast import devices, precision
from rdn_fast.config import ModelConfig
from rdn_fast.precision import Precision
from rdn_fast.rdb import able
from rdn_fast.rdb.autotune import Case, autotune


def resolve_precision(
    opt_level: str,
    amp_dtype: str,
    device: torch.device,
    model_config: ModelConfig,
    shape: tuple[int, int, int, int],
    rdb: str = "auto",
    training: bool = True,
) -> Precision:
    """Return the Precision of these settings for a model's input of `shape` [B, 3, H, W].

    `opt_level` "auto" is auto_level()'s. `rdb`: the impl that computes in either dtype, or "auto".
    """
    if opt_level == "auto":
        case = Case.of(model_config, shape, device, torch.float32, training)
        opt_level = auto_level(case, precision.low_dtype(amp_dtype, device), rdb)
    return precision.resolve(opt_level, amp_dtype, device)


def auto_level(case: Case, low: torch.dtype, rdb: str = "auto") -> str:
    """Return "O0" or "O1", what `--opt-level auto` stands for. `case` is in float32, `low` is O1's dtype.

    Accelerators take O1 by their nature: their tensor cores or cube units compute in 16 bits. A CPU without
    instructions for `low` takes O0: emulated bf16 is 10 to 100 times slower than float32 (measured, profiling/LOG.md).
    Other CPUs take the faster, timed once.
    """
    if not devices.is_host(case.device):
        return "O1"
    if not devices.has_instructions(case.device, low):
        return "O0"
    cases = case, replace(case, dtype=low)
    names = [[i.name for i in able(c.device, c.dtype, c.training) if rdb in ("auto", i.name)] for c in cases]
    if not all(names):
        return "O1" if names[1] else "O0"
    float32, lower = (
        min(seconds for name, seconds in autotune(c).seconds.items() if name in of_case)
        for c, of_case in zip(cases, names, strict=True)
    )
    return "O1" if lower < float32 else "O0"
