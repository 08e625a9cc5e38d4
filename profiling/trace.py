"""`python -m profiling.trace`: one training step under the profiler, as a Chrome trace and a table of its top kernels.

trace.json.gz opens in https://ui.perfetto.dev; kernels.csv holds the whole table. A row's own C kernels stand in its autograd
functions `_Block` and `_BlockBackward`. On Ascend torch_npu.profiler writes its own files instead (never run: no such card at hand).
"""

from __future__ import annotations

import csv
import importlib
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch.autograd import DeviceType

from bench import timing
from bench.cases import RDN_B
from profiling.step import options, training_step
from rdn_fast import devices
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError

FOLDER = Path("outputs/profile")
TOP = 15


class Kernel(NamedTuple):
    """Of one step, children left out: milliseconds on the device, and how many calls."""

    name: str
    ms: float
    calls: int


def trace(config: ModelConfig, batch: int, device: torch.device, folder: Path) -> list[Kernel]:
    """Profile one step; writes trace.json.gz and kernels.csv to `folder`. Returns the kernels, dearest first; on npu nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    _, step = training_step(config, batch, device)
    seconds = [timing.once(step, device) for _ in range(3)][
        -1
    ]  # the first ones make the optimizer's state and choose kernels
    print(
        f"training step, batch {batch}, {step.dtype}, {step.note}, {devices.describe(device)}: {seconds:.3f} s without the profiler"
    )
    step.fresh()
    if device.type == "npu":
        _on_npu(step, device, folder)
        return []
    activities = [
        torch.profiler.ProfilerActivity.CPU,
        *([torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []),
    ]
    began = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profiler:
        step.run()
        devices.synchronize(device)
    print(f"{time.perf_counter() - began:.3f} s with it")
    profiler.export_chrome_trace(str(folder / "trace.json.gz"))
    kernels = _kernels(profiler, device)
    with (folder / "kernels.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(Kernel._fields)
        table.writerows(kernel._replace(ms=f"{kernel.ms:.3f}") for kernel in kernels)
    return kernels


def _kernels(profiler: torch.profiler.profile, device: torch.device) -> list[Kernel]:
    """On a CPU all operators; on CUDA what ran there, without the operators that launched it."""
    on_cpu = device.type == "cpu"
    events = [event for event in profiler.key_averages() if (event.device_type == DeviceType.CPU) == on_cpu]
    kernels = [
        Kernel(e.key, (e.self_cpu_time_total if on_cpu else e.self_device_time_total) / 1e3, e.count) for e in events
    ]
    return sorted(kernels, key=lambda kernel: -kernel.ms)


def _on_npu(step, device: torch.device, folder: Path) -> None:
    profiler = importlib.import_module("torch_npu").profiler
    activities = [profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.NPU]
    with profiler.profile(activities=activities, on_trace_ready=profiler.tensorboard_trace_handler(str(folder))):
        step.run()
        devices.synchronize(device)


def table(kernels: list[Kernel]) -> str:
    """The top kernels in words."""
    total = sum(kernel.ms for kernel in kernels)
    lines = [f"{'ms':>9} {'share':>6} {'calls':>6}  kernel"]
    lines += [
        f"{kernel.ms:9.2f} {kernel.ms / total:6.1%} {kernel.calls:6d}  {kernel.name[:100]}" for kernel in kernels[:TOP]
    ]
    return "\n".join([*lines, f"{total:9.2f} in all, {len(kernels)} kernels"])


def main(argv: list[str] | None = None) -> int:
    try:
        device, batch = options(__doc__, argv)
        kernels = trace(RDN_B, batch, device, FOLDER)
    except UserError as error:
        print(f"trace: error: {error}", file=sys.stderr)
        return 2
    if kernels:
        print(table(kernels))
    print(f"written to {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
