"""torch.npu: what torch itself asks of a device's module, and the names of torch_npu's that are known."""

from __future__ import annotations

import contextlib
import os

import torch
from torch import Event, Stream, accelerator
from torch.accelerator import (
    current_stream,
    empty_cache,
    max_memory_allocated,
    max_memory_reserved,
    memory_allocated,
    memory_reserved,
    memory_stats,
    reset_peak_memory_stats,
    set_stream,
)

from torch_npu.npu import amp, utils

__all__ = [
    "Event",
    "Stream",
    "amp",
    "config",
    "conv",
    "current_device",
    "current_stream",
    "device",
    "device_count",
    "empty_cache",
    "get_amp_supported_dtype",
    "get_device_name",
    "get_rng_state",
    "is_available",
    "is_bf16_supported",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "reset_peak_memory_stats",
    "set_compile_mode",
    "set_device",
    "set_option",
    "set_rng_state",
    "set_stream",
    "stream",
    "synchronize",
    "utils",
]

_library = torch.ops.fake_npu


class _Config:
    """Process-wide settings. `allow_internal_format`: tensors may have the device's private formats."""

    allow_internal_format = False


class _Convolutions:
    """`allow_hf32`: float32 ones may be computed in HF32. This device never does."""

    allow_hf32 = True


config, conv = _Config(), _Convolutions()
_chosen: dict[str, bool] = {}


def _index(device: torch.device | str | int | None) -> int:
    if isinstance(device, int):
        return device
    device = torch.device("npu" if device is None else device)
    if device.type != "npu":
        raise ValueError(f"{device} is no npu")
    return current_device() if device.index is None else device.index


def device_count() -> int:
    return torch._C._accelerator_hooks_device_count()  # torch.accelerator's function asks this one


def is_available() -> bool:
    return device_count() > 0


def current_device() -> int:
    return accelerator.current_device_index()


def set_device(device: torch.device | str | int) -> None:
    accelerator.set_device_index(_index(device))


def device(device: torch.device | str | int):
    """A context manager in which the device is the current one."""
    return accelerator.device_index(_index(device))


def get_device_name(device: torch.device | str | int | None = None) -> str:
    return "simulated on CPU, not run on Ascend"


def synchronize(device: torch.device | str | int | None = None) -> None:
    accelerator.synchronize(_index(device))


def stream(stream: Stream | None):
    """A context manager in which the stream is the current one; None changes nothing."""
    return contextlib.nullcontext() if stream is None else stream


def mem_get_info(device: torch.device | str | int | None = None) -> tuple[int, int]:
    return accelerator.get_memory_info(_index(device))


def manual_seed(seed: int) -> None:
    _library.manual_seed(current_device(), int(seed))


def manual_seed_all(seed: int) -> None:
    for index in range(device_count()):
        _library.manual_seed(index, int(seed))


def get_rng_state(device: torch.device | str | int = "npu") -> torch.Tensor:
    return _library.get_rng_state(_index(device))


def set_rng_state(new_state: torch.Tensor, device: torch.device | str | int = "npu") -> None:
    _library.set_rng_state(_index(device), new_state)


def is_bf16_supported() -> bool:
    return True


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float16, torch.bfloat16, torch.float32]


def set_compile_mode(jit_compile: bool = False) -> None:
    """Choose between compiled and prebuilt kernels, once per process: the real device does not switch safely.

    FAKE_NPU_REFUSES_JIT=1 simulates a device without a compiler. FAKE_NPU_LOG names a file that gets a line per call:
    the device, the mode, and how many bytes were allocated before.
    """
    if jit_compile and os.environ.get("FAKE_NPU_REFUSES_JIT") == "1":
        raise RuntimeError("set_compile_mode: no compiler of operators was found")
    if "FAKE_NPU_LOG" in os.environ:
        with open(os.environ["FAKE_NPU_LOG"], "a") as log:
            print(
                f"npu:{current_device()} format={config.allow_internal_format} jit={jit_compile} "
                f"after {max_memory_allocated()}",
                file=log,
            )
    if _chosen.setdefault("jit_compile", bool(jit_compile)) != bool(jit_compile):
        raise RuntimeError("set_compile_mode: jit_compile cannot be changed again in this process")


def set_option(option: dict) -> None:
    """Vendor settings by name; they change nothing here."""
    if not isinstance(option, dict) or not all(isinstance(key, str) for key in option):
        raise TypeError("set_option: give a dict of names and values")


def _is_in_bad_fork() -> bool:
    return False


def _lazy_init() -> None:
    """torch asks for it; there is nothing to start."""
