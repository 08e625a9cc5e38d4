"""Peak memory of one rdn-b training step, less what was resident before it (weights, optimizer state), in a process of its own.

`python -m bench.memory ROW DTYPE BATCH DEVICE` prints bytes. On an accelerator they are what torch has allocated there. On a CPU they
are the kernel's: the peak of the resident set (VmHWM, reset through /proc/self/clear_refs) less the resident set before the step, with
every large block mapped by itself, so that what is freed leaves the resident set at once.
"""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from bench.cases import PATCH, RDN_B
from bench.ours import Ours
from rdn_fast import devices
from rdn_fast.rdb import winograd


def peak(row: str, dtype: torch.dtype, batch: int, device: torch.device) -> float:
    """Bytes, measured in a new process. RuntimeError with the process's last words when it fails."""
    command = [sys.executable, "-m", "bench.memory", row, str(dtype).removeprefix("torch."), str(batch), str(device)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"memory of {row}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return float(done.stdout)


def _measure(row: str, dtype: torch.dtype, batch: int, device: torch.device) -> int:
    recipe = Ours(RDN_B, device, dtype, row)

    def step(batch: int) -> None:
        sizes = (batch, 3, PATCH, PATCH), (batch, 3, 2 * PATCH, 2 * PATCH)
        lr, hr = (torch.rand(size, device=device).contiguous(memory_format=recipe.memory_format) for size in sizes)
        before = _resident(device)
        recipe.step(lr, hr)
        peaks.append(_peak(device) - before)

    peaks: list[int] = []
    step(1)  # optimizer state, code and first-time allocations are resident before the step that counts
    recipe.optimizer.zero_grad()
    vars(winograd._kept).clear()  # scratch that lives on after a step is memory of the step all the same
    gc.collect()
    step(batch)
    return peaks[-1]


def _resident(device: torch.device) -> int:
    """Bytes now; the peak starts anew from here."""
    if device.type != "cpu":
        devices.synchronize(device)
        torch.accelerator.reset_peak_memory_stats()
        return torch.accelerator.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def _peak(device: torch.device) -> int:
    if device.type != "cpu":
        devices.synchronize(device)
        return torch.accelerator.max_memory_allocated()
    return status("VmHWM")


def status(name: str) -> int:
    """Bytes that /proc says of this process, VmHWM being the peak of its resident set."""
    return 1024 * int(re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


if __name__ == "__main__":
    _row, _dtype, _batch, _device = sys.argv[1:]
    print(_measure(_row, getattr(torch, _dtype), int(_batch), devices.pick(_device)))
