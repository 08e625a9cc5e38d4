"""The measurements of gpu_check.py that bench/run.py has not: `python -m bench.gpu_parts convolutions|rows|kernels|training [--device cuda]`.

convolutions: what cuDNN makes of each layer of a dense block by itself. rows: the RDB table. kernels: each configuration of the row
triton_planes. training: one long run of `rdn-fast train`. Every result is checked before it is timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from bench import cases, end_to_end
from bench.bandwidth import bandwidth
from bench.cases import PATCH, RDN_B, Contender
from bench.measure import Bench, _name, _seconds
from bench.timing import Times, interleave, once
from rdn_fast import devices
from rdn_fast.config import ModelConfig, make_configs
from rdn_fast.errors import UserError
from rdn_fast.rdb import IMPLS, refusal, triton_planes

BATCH = 64
RUNS = 10  # of a block under the profiler


class _Convolution(Contender):
    """3x3, `channels` -> `outputs`, channels-last: forward, or the gradient of the data or of the weights."""

    def __init__(self, what: str, channels: int, outputs: int, batch: int, device: torch.device, dtype: torch.dtype):
        self.what, self.dtype, self.device = what, dtype, device
        self._sizes = (batch, channels, PATCH, PATCH), (batch, outputs, PATCH, PATCH)
        self.w = self._normal(outputs, channels, 3, 3)
        self.flop = 2 * batch * PATCH**2 * 9 * channels * outputs

    def _normal(self, *size: int) -> torch.Tensor:
        return torch.randn(size, device=self.device, dtype=self.dtype).contiguous(memory_format=torch.channels_last)

    def fresh(self) -> None:
        self.x, self.dy = (self._normal(*size) for size in self._sizes)

    def run(self) -> None:
        if self.what == "forward":
            F.conv2d(self.x, self.w, padding=1)
        else:
            mask = [self.what == "data gradient", self.what == "weight gradient", False]
            torch.ops.aten.convolution_backward(
                self.dy, self.x, self.w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
            )


def convolutions(bench: Bench, config: ModelConfig, batch: int, dtypes: list[torch.dtype]) -> None:
    """Ceilings, then each layer in each dtype. Stock PyTorch is the oracle's yardstick itself, so nothing is checked."""
    bench.ceilings()
    what, times, gbytes = bandwidth(bench.device)
    bench._row(case="copy", recipe=what, dtype="", batch=0, shape="", note=f"{gbytes:.0f} GB/s", **_seconds(times))
    for dtype in dtypes:
        for layer in range(config.num_layers):
            channels = config.num_features + layer * config.growth_rate
            for kind in ("forward", "data gradient", "weight gradient"):
                contender = _Convolution(kind, channels, config.growth_rate, batch, bench.device, dtype)
                once(contender, bench.device)
                times = interleave({0: contender}, bench.device, rounds=5, span=0.02)[0]
                gflops, name = contender.flop / times.median / 1e9, _name(dtype)
                shape = f"{channels} -> {config.growth_rate}, {PATCH}x{PATCH}"
                bench._row(
                    case=f"convolution {kind}",
                    recipe="stock",
                    dtype=name,
                    batch=batch,
                    shape=shape,
                    gflops=gflops,
                    ceiling_share=bench._share(gflops, name),
                    **_seconds(times),
                )


def rows(bench: Bench, config: ModelConfig, batch: int) -> None:
    """One block by every row that can run, forward and training, in the device's default dtype."""
    bench.ceilings()
    for training in (True, False):
        bench.case(cases.block(training, config, (batch, PATCH, PATCH), bench.device, bench.default), rounds=5)


def kernels(bench: Bench, config: ModelConfig, batch: int) -> None:
    """Device time of each kernel of triton_planes in one training run of a block, by configuration. UserError where the row cannot run.

    The row is left with the last configuration: the process ends here.
    """
    row, dtype = IMPLS["triton_planes"], bench.default
    if reason := refusal(row, bench.device, dtype, training=True):
        raise UserError(f"row {row.name} {reason}")
    case = cases.block(True, config, (batch, PATCH, PATCH), bench.device, dtype)
    entry = next(entry for entry in case.entries if entry.recipe == f"row {row.name}")
    bench.ceilings()
    every = triton_planes.CONFIGS
    for number in range(max(map(len, every.values()))):
        triton_planes.CONFIGS = {name: configs[number : number + 1] or configs[:1] for name, configs in every.items()}
        triton_planes._chosen.clear()
        contender = entry.make()
        try:
            case.check(contender, f"configuration {number}")
        except AssertionError as error:
            bench._fail(f"kernels, wrong: {error}")
            continue
        times = kernel_times(contender, bench.device, list(every))
        for name, configs in every.items():
            if number < len(configs):
                gflops = _kernel_flop(config, batch)[name] / times[name] / 1e9
                bench._row(
                    case="kernel",
                    recipe=f"{row.name} {name}",
                    dtype=_name(dtype),
                    batch=batch,
                    shape=f"{cases.words(config)}, {PATCH}x{PATCH}",
                    gflops=gflops,
                    ceiling_share=bench._share(gflops, _name(dtype)),
                    note=", ".join(f"{key} {value}" for key, value in configs[number].items()),
                    **_seconds(Times([times[name]])),
                )


def kernel_times(contender: Contender, device: torch.device, names: list[str]) -> dict[str, float]:
    """Seconds that the device spends in the kernels of these names in one run. RuntimeError when the profiler saw none of a name."""
    once(contender, device)
    contender.fresh()
    activities = [
        torch.profiler.ProfilerActivity.CPU,
        *([torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []),
    ]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(RUNS):
            contender.run()
        devices.synchronize(device)
    events = {event.key: event for event in profiler.key_averages()}
    if missing := [name for name in names if name not in events]:
        raise RuntimeError(f"the profiler has seen no kernel {', '.join(missing)}, but {', '.join(list(events)[:8])}")
    spent = {
        name: events[name].self_cpu_time_total if device.type == "cpu" else events[name].self_device_time_total
        for name in names
    }
    return {name: microseconds / 1e6 / RUNS for name, microseconds in spent.items()}


def _kernel_flop(c: ModelConfig, batch: int) -> dict[str, int]:
    """Of each kernel in one training run of a block, over all its launches."""
    fusion = (c.num_features + c.num_layers * c.growth_rate) * c.num_features
    macs = {
        "layer": c.block_macs - fusion,
        "data_gradient": c.block_macs,
        "weight_gradient": c.block_macs,
        "fusion": fusion,
    }
    return {name: 2 * batch * PATCH**2 * n for name, n in macs.items()}


def training(bench: Bench, preset: str, batch: int, steps: int) -> None:
    """`rdn-fast train` in a process of its own, long enough for its speed to be steady."""
    config = make_configs({}, preset)[0]
    bench.ceilings()
    plan = end_to_end.Plan(preset, batch, steps, 1, bench.device.type, end_to_end.threads(1))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.h5"
        end_to_end.write_data(data, plan.images, config.scale)
        speeds = end_to_end.run_rdn_fast(data, plan, bench.rdb)
    gflops, dtype = speeds.images_s * 6 * config.macs(PATCH, PATCH) / 1e9, _name(bench.default)
    bench._row(
        case="long run",
        recipe="rdn_fast",
        dtype=dtype,
        batch=batch,
        shape=f"{cases.words(config)}, {PATCH}x{PATCH}",
        images_s=speeds.images_s,
        seed_images_s=speeds.seed_images_s,
        gflops=gflops,
        ceiling_share=bench._share(gflops, dtype),
        note=f"{steps} steps",
        **_seconds(Times([batch / speeds.images_s])),
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_parts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("convolutions", "rows", "kernels", "training"))
    parser.add_argument("--device", default="cuda", help="auto, cpu, cuda[:i] or npu[:i] (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        bench = Bench(f"gpu-{options.part}", devices.pick(options.device), "auto")
        if options.part == "convolutions":
            convolutions(bench, RDN_B, BATCH, [torch.float16, torch.bfloat16])
        elif options.part == "rows":
            rows(bench, RDN_B, BATCH)
        elif options.part == "kernels":
            kernels(bench, RDN_B, BATCH)
        else:
            training(bench, "rdn-b", BATCH, steps=600)
    except UserError as error:
        print(f"gpu_parts: error: {error}", file=sys.stderr)
        return 2
    for failure in bench.failures:
        print(f"FAILED  {failure}")
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
