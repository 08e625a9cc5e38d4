"""Ascend's process-wide modes: whether tensors may have private formats, and whether operators are compiled (jit)."""

from __future__ import annotations

import torch

from rdn_fast.errors import UserError

_MODES = {  # name: (allow_internal_format, jit_compile)
    "format+jit": (True, True),
    "format": (True, False),
    "jit": (False, True),
    "base": (False, False),
}


class _ActiveModes:
    """The mode that this process has set for each kind of device."""

    def __init__(self):
        self.by_kind: dict[str, str] = {}

    def clear(self) -> None:
        self.by_kind.clear()


active_modes = _ActiveModes()


def modes(device: torch.device) -> tuple[str, ...]:
    """Return the modes that a process can set before it computes; () for devices without modes."""
    return tuple(_MODES) if device.type == "npu" else ()


def modes_by_name(name: str) -> tuple[str, ...]:
    """Return the modes of the devices that `--device name` may mean, whether they are here or not."""
    return tuple(_MODES) if name.partition(":")[0] in ("auto", "npu") else ()


def mode(device: torch.device) -> str:
    """Return the mode that this process has set; "" for none, the chip's own default."""
    return active_modes.by_kind.get(device.type, "")


def use_mode(device: torch.device, name: str) -> None:
    """Set a mode for this process, before its first tensor is on the device. Raises UserError if that is impossible."""
    before = mode(device)
    if name == before:
        return
    if before:
        target = name or "its own"
        raise UserError(
            f"{device} computes in mode {before} and cannot change to {target} inside a process; do that in another one"
        )
    module, (formats, jit) = torch.get_device_module(device), _MODES[name]
    try:
        module.config.allow_internal_format = formats
        module.set_compile_mode(jit_compile=jit)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        remedy = "after `rdn-fast tune` a new run takes one that works"
        raise UserError(f"{device} refuses mode {name} ({reason}); {remedy}") from None
    active_modes.by_kind[device.type] = name
