"""`python -m profiling.trace`: one training step under the profiler, as a Chrome trace and a table of its top kernels.

trace.json.gz opens in https://ui.perfetto.dev; kernels.csv holds the whole table. An implementation's own C kernels
stand in its autograd functions `_Block` and `_BlockBackward`. On Ascend torch_npu.profiler writes its own files instead
(never run: no such card at hand).
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
from bench.models import RDN_B
from profiling.step import options, profiled_step
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


def trace(model_config: ModelConfig, batch: int, device: torch.device, folder: Path) -> list[Kernel]:
    """Profile one step; write trace.json.gz and kernels.csv to `folder`. Return the kernels by time; on npu nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe, step = profiled_step(model_config, batch, device)
    seconds = [timing.once(step, device) for _ in range(3)][-1]  # the first ones make the optimizer's state
    what = f"training step, batch {batch}, {recipe.dtype}, {step.note}, {devices.describe(device)}"
    print(f"{what}: {seconds:.3f} s without the profiler")
    inputs = step.fresh()
    if device.type == "npu":
        _on_npu(step.run, inputs, device, folder)
        return []
    began = time.perf_counter()
    with profiler(device) as profile:
        step.run(*inputs)
        devices.synchronize(device)
    print(f"{time.perf_counter() - began:.3f} s with it")
    profile.export_chrome_trace(str(folder / "trace.json.gz"))
    kernels = _kernels(profile, device)
    with (folder / "kernels.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(Kernel._fields)
        rows.writerows(kernel._replace(ms=f"{kernel.ms:.3f}") for kernel in kernels)
    return kernels


def profiler(device: torch.device) -> torch.profiler.profile:
    """Return torch's profiler for a CPU or CUDA device."""
    cuda = [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, *cuda])


def self_time(event, device: torch.device) -> float:
    """Return the microseconds of one of the profiler's averages on the device, children left out."""
    return event.self_cpu_time_total if device.type == "cpu" else event.self_device_time_total


def _kernels(profile: torch.profiler.profile, device: torch.device) -> list[Kernel]:
    """Return all operators on a CPU; on CUDA what ran there, without the operators that launched it."""
    on_cpu = device.type == "cpu"
    events = [event for event in profile.key_averages() if (event.device_type == DeviceType.CPU) == on_cpu]
    kernels = [Kernel(event.key, self_time(event, device) / 1e3, event.count) for event in events]
    return sorted(kernels, key=lambda kernel: -kernel.ms)


def _on_npu(run, inputs: tuple, device: torch.device, folder: Path) -> None:
    npu = importlib.import_module("torch_npu").profiler
    activities = [npu.ProfilerActivity.CPU, npu.ProfilerActivity.NPU]
    with npu.profile(activities=activities, on_trace_ready=npu.tensorboard_trace_handler(str(folder))):
        run(*inputs)
        devices.synchronize(device)


def table(kernels: list[Kernel]) -> str:
    """Return the top kernels as text."""
    total = sum(kernel.ms for kernel in kernels)
    lines = [f"{'ms':>9} {'share':>6} {'calls':>6}  kernel"]
    lines += [f"{k.ms:9.2f} {k.ms / total:6.1%} {k.calls:6d}  {k.name[:100]}" for k in kernels[:TOP]]
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
