"""`python -m profiling.kernels convolutions|impls|tail [--device cuda]`: single kernels, as rows in results or $OUT.

convolutions: what cuDNN makes of each layer of a dense block by itself. impls: each configuration of triton_planes, and
hopper, where they can run. tail: the last convolution at O1, with the pixel shuffle before it.
"""

from __future__ import annotations

import argparse
import sys

import torch

from bench import ceilings
from bench.case import Contender, Entry
from bench.cases import rdb
from bench.measure import Bench
from bench.models import PATCH, RDN_B, words
from bench.timing import Times, interleave, once
from profiling.trace import profiler, self_time
from rdn_fast import devices
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.rdb import IMPLS, refusal, triton_planes
from rdn_fast.tail import output_conv, output_trial

BATCH = 64
RUNS = 10  # of a block under the profiler
PASSES = ("forward", "data gradient", "weight gradient")


def convolution(what: str, channels: int, outputs: int, batch: int, device: torch.device, dtype: torch.dtype):
    """Return (Contender, FLOP) of one of PASSES of a 3x3 convolution `channels` -> `outputs`, channels-last."""

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)

    def forward(x: torch.Tensor, _) -> None:
        torch.nn.functional.conv2d(x, weight, padding=1)

    def backward(x: torch.Tensor, dy: torch.Tensor) -> None:
        mask = [what == "data gradient", what == "weight gradient", False]
        ones = [1, 1]
        torch.ops.aten.convolution_backward(dy, x, weight, None, ones, ones, ones, False, [0, 0], 1, mask)

    weight = normal(outputs, channels, 3, 3)
    fresh = lambda: (normal(batch, channels, PATCH, PATCH), normal(batch, outputs, PATCH, PATCH))  # noqa: E731
    run = forward if what == "forward" else backward
    return Contender(run, fresh), 2 * batch * PATCH**2 * 9 * channels * outputs


def convolutions(bench: Bench, model_config: ModelConfig, batch: int, dtypes: list[torch.dtype]) -> None:
    """Write each layer in each dtype, in turn with the ceilings. Stock PyTorch is the yardstick: nothing is checked."""
    growth = model_config.growth_rate
    for dtype in dtypes:
        for layer in range(model_config.num_layers):
            channels = model_config.num_features + layer * growth
            shape, passes = f"{channels} -> {growth}, {PATCH}x{PATCH}", {}
            for kind in PASSES:
                passes[kind], flop = convolution(kind, channels, growth, batch, bench.device, dtype)
                once(passes[kind], bench.device)
            plain = ceilings.contenders(bench.device, [dtype])
            times = interleave(passes | plain, bench.device, rounds=5, span=0.02)
            bench.ceilings(times, batch, shape)
            for kind in PASSES:
                gflops = flop / times[kind].median / 1e9
                bench.row(f"convolution {kind}", "stock", dtype, batch, shape, times[kind], gflops=gflops)


def impls(bench: Bench, model_config: ModelConfig, batch: int) -> None:
    """Write the kernels of those impls that can run. UserError if none can."""
    contenders = {"triton_planes": triton, "hopper": hopper}
    reasons = {name: refusal(IMPLS[name], bench.device, bench.default, training=True) for name in contenders}
    for name, write in contenders.items():
        if reasons[name] is None:
            write(bench, model_config, batch)
    if None not in reasons.values():
        raise UserError("; ".join(f"{name} {reason}" for name, reason in reasons.items()))


def triton(bench: Bench, model_config: ModelConfig, batch: int) -> None:
    """Write the device time of each kernel of triton_planes in one training run of a block, by configuration.

    The implementation is left with the last configuration: the process ends here.
    """
    entry = training_run(bench, "triton_planes", model_config, batch)
    every, flop = triton_planes.configs.candidates, kernel_flop(model_config, batch)
    for number in range(max(map(len, every.values()))):
        triton_planes.configs.restrict(number)
        contender = entry.build()
        try:
            contender.check()
        except AssertionError as error:
            bench.fail(f"kernels, configuration {number}, wrong: {error}")
            continue
        except UserError as error:  # it cannot be built
            bench.fail(f"kernels, configuration {number}: {error}")
            continue
        seconds = kernel_times(contender, bench.device, list(every))
        for name, configs in every.items():
            if number < len(configs):
                given = ", ".join(f"{key} {value}" for key, value in configs[number].items())
                row(bench, f"triton_planes {name}: {given}", model_config, batch, seconds[name], flop.get(name))


def hopper(bench: Bench, model_config: ModelConfig, batch: int) -> None:
    """Write the device time of each kernel of hopper in one training run of a block."""
    contender = training_run(bench, "hopper", model_config, batch).build()
    try:
        contender.check()
    except AssertionError as error:
        bench.fail(f"hopper, wrong: {error}")
        return
    flop = hopper_flop(model_config, batch)
    for name, seconds in kernel_times(contender, bench.device, list(flop)).items():
        row(bench, f"hopper {name}", model_config, batch, seconds, flop[name])


def tail(bench: Bench, model_config: ModelConfig, batch: int) -> None:
    """Write the last convolution at O1 with the pixel shuffle before it, forward and backward, in turn.

    PyTorch's has all of the map in float32; ours is checked before. UserError if that cannot run.
    """
    c, device, side = model_config, bench.device, PATCH * model_config.scale
    if (reason := output_conv.missing(device)) is not None:
        raise UserError(f"output_conv {reason}")
    for dtype in output_conv.LOW:
        if wrong := output_trial.flaw(device, output_conv.output_conv, dtype, (batch, c.tail_channels, side, side)):
            bench.fail(f"output_conv: {wrong}")
            continue
        contenders = {
            name: of_tail(c, batch, device, dtype, name == "output_conv") for name in ("stock", "output_conv")
        }
        for contender in contenders.values():
            once(contender, device)
        times = interleave(contenders, device, rounds=5)
        for name, mine in times.items():
            shape = words(c, PATCH, PATCH)
            bench.row("last convolution", name, dtype, batch, shape, mine, vs_stock=mine.over(times["stock"]))


def of_tail(c: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype, ours: bool) -> Contender:
    """Return forward and backward from the map before the last pixel shuffle on, captured as a training step is."""
    factor, channels = c.shuffles[-1], c.tail_channels
    conv = torch.nn.Conv2d(channels, 3, 3, padding=1).to(device, memory_format=torch.channels_last)
    side = PATCH * c.scale
    x = torch.randn(batch, channels * factor**2, side // factor, side // factor, device=device, dtype=dtype)
    dy = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()

    def run() -> tuple[torch.Tensor, ...]:
        z = devices.pixel_shuffle(x, factor, dtype if ours else torch.float32)
        y = output_conv.output_conv(z, conv.weight, conv.bias) if ours else conv(z)
        return torch.autograd.grad(y, [x, conv.weight, conv.bias], dy)

    graphed = devices.CudaGraphed(run, device, "the last convolution")
    graphed.prepare()
    return Contender(graphed)


def training_run(bench: Bench, name: str, model_config: ModelConfig, batch: int) -> Entry:
    """Write the ceilings, and return what builds a training run of a block by an impl."""
    comparison = rdb.comparison(True, model_config, (batch, PATCH, PATCH), bench.device, bench.default)
    bench.ceilings(interleave(ceilings.contenders(bench.device, [bench.default]), bench.device, rounds=5))
    return next(entry for entry in comparison.entries if entry.recipe == f"impl {name}")


def row(bench: Bench, recipe: str, c: ModelConfig, batch: int, seconds: float, flop: int | None) -> None:
    gflops = flop / seconds / 1e9 if flop else None
    bench.row("kernel", recipe, bench.default, batch, words(c, PATCH, PATCH), Times([seconds]), gflops=gflops)


def kernel_times(contender: Contender, device: torch.device, names: list[str]) -> dict[str, float]:
    """Return the seconds that the device spends in the kernels of these names in one run.

    RuntimeError if the profiler saw none of a name.
    """
    once(contender, device)
    inputs = contender.fresh()
    with profiler(device) as profile:
        for _ in range(RUNS):
            contender.run(*inputs)
        devices.synchronize(device)
    events = {event.key: event for event in profile.key_averages()}
    if missing := [name for name in names if name not in events]:
        seen = ", ".join(list(events)[:8])
        raise RuntimeError(f"the profiler has seen no kernel {', '.join(missing)}, but {seen}")
    return {name: self_time(events[name], device) / 1e6 / RUNS for name in names}


def kernel_flop(c: ModelConfig, batch: int) -> dict[str, int]:
    """Return the FLOP of each kernel with matrix products in one training run of a block, over all its launches."""
    fusion = (c.num_features + c.num_layers * c.growth_rate) * c.num_features
    macs = {"layer": c.block_macs - fusion, "data_gradient": c.block_macs, "weight_gradient": c.block_macs}
    return {name: 2 * batch * PATCH**2 * n for name, n in (macs | {"fusion": fusion}).items()}


def hopper_flop(c: ModelConfig, batch: int) -> dict[str, int]:
    """Return the FLOP of each kernel of hopper, as kernel_flop() does; `residual` has the fusion and x's gradient."""
    of_triton = kernel_flop(c, batch)
    fusion = of_triton["fusion"]
    of_x = 2 * batch * PATCH**2 * c.num_features * (9 * c.num_layers * c.growth_rate + c.num_features)
    flop = {"layer": of_triton["layer"], "residual": fusion + of_x, "gradient": of_triton["data_gradient"] - of_x}
    return flop | {"layer_weights": of_triton["weight_gradient"] - fusion, "fusion_weights": fusion}


def main(argv: list[str] | None = None) -> int:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m profiling.kernels", description=__doc__, formatter_class=kind)
    parser.add_argument("what", choices=("convolutions", "impls", "tail"))
    parser.add_argument("--device", default="cuda", help="auto, cpu, cuda[:i] or npu[:i] (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        bench = Bench(options.what, devices.pick(options.device), "auto")
        if options.what == "convolutions":
            convolutions(bench, RDN_B, BATCH, [torch.float16, torch.bfloat16])
        else:
            {"impls": impls, "tail": tail}[options.what](bench, RDN_B, BATCH)
    except UserError as error:
        print(f"kernels: error: {error}", file=sys.stderr)
        return 2
    for failure in bench.failures:
        print(f"FAILED  {failure}")
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
