"""Free memory, page-locked memory, and errors that mean that memory ran out."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch


def free_memory(device: torch.device) -> int:
    """Return how many bytes can still be allocated on the accelerator, or on the host within its container's limit."""
    if device.type != "cpu":
        return torch.get_device_module(device).mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        if not hasattr(os, "sysconf"):
            return 4 << 30  # not known: enough for one picture, and for training by mmap
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return min([available, *_container_headroom(Path("/sys/fs/cgroup"))])


def _container_headroom(root: Path) -> list[int]:
    """Return the bytes below the memory limit of the control group at `root` (version 2 or 1); [] without a limit."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            allowed, taken = (int((root / name).read_text()) for name in (limit, used))
            stat = dict(line.split() for line in (root / limit).with_name("memory.stat").read_text().splitlines())
            return [max(0, allowed - taken + int(stat[cached]))]  # the kernel can drop inactive page cache
        except (OSError, ValueError, KeyError):  # ValueError: the limit is "max"
            continue
    return []


def keep_freed_memory() -> None:
    """Let glibc's malloc keep the host memory that is freed, for all of this process; nothing elsewhere.

    A training step frees its activations, which are given back to the system, and the next step waits until the system
    has zeroed as many fresh pages: 4 to 6% of a step of eager implementations on a CPU (profiling/LOG.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # of malloc.h
        mallopt(mmap_threshold, 32 << 20)  # bytes; the largest that glibc takes
        mallopt(trim_threshold, -1)  # never


def pinned_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return an uninitialized host tensor for asynchronous copies to `device`: page-locked, or plain for a CPU."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type != "cpu")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether the error means that the device or the host ran out of memory."""
    texts = "out of memory", "can't allocate memory"  # drivers and some torch_npu versions raise a plain RuntimeError
    return type(error).__name__ == "OutOfMemoryError" or any(text in str(error) for text in texts)
