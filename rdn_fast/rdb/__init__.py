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
from rdn_fast.rdb import naive


@dataclass(frozen=True)
class Impl:
    """One row: where it runs, the memory format that it wants, whether it has a backward pass, and why it exists."""

    name: str
    module: ModuleType
    devices: tuple[str, ...]
    layout: str  # "any", "channels_last" or "contiguous"
    trains: bool
    why: str


IMPLS = {
    row.name: row
    for row in (
        Impl("naive", naive, ("cpu", "cuda", "npu"), "any", True, "the oracle: concat, as the paper writes it"),
    )
}  # fmt: skip


def refusal(row: Impl, device: torch.device, training: bool) -> str | None:
    """Why the row cannot run there; None when it can."""
    if device.type not in row.devices:
        return f"runs on {', '.join(row.devices)} only"
    if training and not row.trains:
        return "has no backward pass"
    return None


def select(name: str, device: torch.device, training: bool) -> Impl:
    """The row called `name`, or for `auto` the first that can run. Raises UserError when it cannot; never falls back silently."""
    able = [row for row in IMPLS.values() if refusal(row, device, training) is None]
    if name == "auto" and able:
        return able[0]
    names = ", ".join(row.name for row in able) or "none"
    if name not in IMPLS:
        raise UserError(f"--rdb {name}: no such implementation for {device.type}; here can run: {names}")
    reason = refusal(IMPLS[name], device, training)
    if reason is not None:
        raise UserError(f"--rdb {name} {reason}; on {device.type} can run: {names}")
    return IMPLS[name]
