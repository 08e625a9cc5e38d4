"""The last convolution at O1 on CUDA GPUs: reads a map in low precision, sums in float32, returns float32.

ATen's convolutions have one dtype, so that the largest map of a step would be cast to float32 first. Here it crosses
memory in two bytes a value, and backward has one pass over it for all gradients.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from torch.autograd.function import once_differentiable

from rdn_fast.devices import is_current_gpu
from rdn_fast.rdb.trial import flaw_on
from rdn_fast.rdb.triton_planes import triton_missing
from rdn_fast.terminal import print_line

_WHAT = "the last convolution is PyTorch's: its kernel"  # how a note begins
LOW = (torch.float16, torch.bfloat16)
MOST_CHANNELS = 64  # of x: their accumulators fit into the registers
PROGRAMS = (
    264  # of `backward`, two for each of an H100's multiprocessors; on every GPU, because it decides the rounding
)
CONFIGS = {  # spill nothing, compiled for sm_90; not timed on a card yet
    "forward": {"ROWS": 8, "COLS": 16, "num_warps": 4, "num_stages": 1},
    "backward": {"P": 64, "num_warps": 4, "num_stages": 2},
}


def fits(conv: torch.nn.Conv2d, x: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether output_conv() computes conv(x) in `dtype`: of this kind, and its kernels work on this card.

    Not while torch compiles or exports a model: it sees the convolution instead.
    """
    if x.dtype not in LOW or dtype != torch.float32 or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    few = conv.kernel_size == (3, 3) and conv.out_channels == 3 and conv.in_channels <= MOST_CHANNELS
    return few and x.numel() > 0 and is_current_gpu(x.device) and missing(x.device) is None


@cache
def missing(card: torch.device) -> str | None:
    """Return why the kernels cannot be compiled and launched on this card, or None. The first time, try it."""
    if (reason := triton_missing()) is not None:
        print_line(f"note: {_WHAT} {reason}")
        return reason
    sources = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("output_*.py")))
    version = f"{hashlib.sha256(sources).hexdigest()[:12]}, triton {metadata.version('triton')}"
    return flaw_on(card, _WHAT, "rdn_fast.tail.output_trial", version)


def output_conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """x: [B, C, H, W], float16 or bfloat16 -> y: [B, 3, H, W], float32, channels_last: a convolution, padding 1.

    weight: [3, C, 3, 3], bias: [3]; float32 weights are multiplied as they are. Fastest when x is channels_last.
    """
    return _OutputConv.apply(x, weight, bias)


class _OutputConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        x = x.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        config = CONFIGS["forward"]
        across, down = -(-width // (config["COLS"] - 2)), -(-height // (config["ROWS"] - 2))
        y = torch.empty(batch, 3, height, width, device=x.device, memory_format=torch.channels_last)
        sizes = height, width, across, down, *weight.stride()
        launch("forward", (batch * down * across,), x, weight, bias, y, *sizes, **_channels(channels), **config)
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype = bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        batch, channels, height, width = x.shape
        config, constants, pixels = CONFIGS["backward"], _channels(channels), batch * height * width
        programs, k = min(PROGRAMS, -(-pixels // config["P"])), constants["K"]
        dx, parts = torch.empty_like(x), x.new_empty(programs, 32 * k + 32, dtype=torch.float32)
        sizes = pixels, height, width, *dy.stride(), *weight.stride()
        launch("backward", (programs,), dy, x, weight, dx, parts, *sizes, **constants, **config)
        sums = parts.sum(0)
        of_weight = sums[: 27 * k].view(3, 3, 3, k)[..., :channels].permute(2, 3, 0, 1)  # from [tap, tap, output, K]
        of_bias = sums[32 * k + 12 : 32 * k + 15]  # of the middle tap
        return dx, torch.empty_like(weight).copy_(of_weight), of_bias.to(ctx.bias_dtype, copy=True)


def _channels(channels: int) -> dict[str, int]:
    return {"C": channels, "K": max(16, 1 << (channels - 1).bit_length())}


def launch(name: str, grid: tuple[int, ...], *args, **config) -> None:
    """Launch a kernel. All launches pass here: tests replace it to count them, or to compile without a GPU."""
    kernel(name)[grid](*args, **config)


def kernel(name: str):
    """Return a kernel by its name."""
    from rdn_fast.tail import output_kernels

    return getattr(output_kernels, name)
