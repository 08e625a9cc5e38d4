"""Implementations of the residual dense block: one table, and `select` to look it up.

Every row's module exports `rdb(x, conv_w, conv_b, fuse_w, fuse_b, *, out=None) -> y` with
x, y: [B, G0, H, W]; conv_w[j]: [G, G0 + j*G, 3, 3]; conv_b[j]: [G]; fuse_w: [G0, G0 + C*G, 1, 1]; fuse_b: [G0], all of one
dtype and device. `out` is where y may be written; rows that cannot write in place ignore it. Low-precision rows accumulate in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch

from rdn_fast.errors import UserError
from rdn_fast.rdb import compiled, naive, sliced, summed, torchair, triton_planes, winograd

LOW = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *LOW)


@dataclass(frozen=True)
class Impl:
    """One row: where and in what it computes, the memory format that it wants, whether it has a backward pass, and why it exists.

    A module that needs more than torch (a compiler, a package) exports `missing() -> str | None` as well: what is not there.
    """

    name: str
    module: ModuleType
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    layout: str  # "any", "channels_last" or "contiguous"
    trains: bool
    why: str


IMPLS = {
    row.name: row
    for row in (
        Impl("naive", naive, ("cpu", "cuda", "npu"), (*FLOATS, torch.float64), "any", True, "the oracle: concat, as the paper writes it"),
        Impl("sliced", sliced, ("cpu", "cuda", "npu"), FLOATS, "any", True, "one buffer, no concat; backward in reverse; a sixth of the memory"),
        Impl("summed", summed, ("cpu", "cuda", "npu"), FLOATS, "any", True, "a convolution for each map, summed: no concat, no slices"),
        Impl("winograd", winograd, ("cpu",), (torch.float32,), "any", True, "C kernels: each map is transformed once, a quarter of the products"),
        Impl("compiled", compiled, ("cuda",), FLOATS, "any", True, "torch.compile of naive"),
        Impl("torchair", torchair, ("npu",), FLOATS, "contiguous", False, "torch.compile of naive by the vendor's graph mode"),
        Impl("triton_planes", triton_planes, ("cuda",), LOW, "channels_last", True, "fused kernels on planes, one per layer; fused backward"),
    )
}  # fmt: skip


def refusal(row: Impl, device: torch.device, dtype: torch.dtype, training: bool) -> str | None:
    """Why the row cannot run there; None when it can."""
    if device.type not in row.devices:
        return f"runs on {', '.join(row.devices)} only"
    if dtype not in row.dtypes:
        return f"computes in {', '.join(str(d).removeprefix('torch.') for d in row.dtypes)} only, not in {str(dtype).removeprefix('torch.')}"
    if training and not row.trains:
        return "has no backward pass"
    return row.module.missing() if hasattr(row.module, "missing") else None


def able(device: torch.device, dtype: torch.dtype, training: bool) -> list[Impl]:
    """The rows that can run there, in the table's order."""
    return [row for row in IMPLS.values() if refusal(row, device, dtype, training) is None]


def select(name: str, device: torch.device, dtype: torch.dtype, training: bool) -> Impl:
    """The row called `name`. Raises UserError with the reason when it cannot run; never falls back silently."""
    reason = refusal(IMPLS[name], device, dtype, training) if name in IMPLS else "is no implementation"
    if reason is not None:
        names = ", ".join(row.name for row in able(device, dtype, training)) or "none"
        raise UserError(
            f"--rdb {name} {reason}; on {device.type} in {str(dtype).removeprefix('torch.')} can run: {names}"
        )
    return IMPLS[name]
