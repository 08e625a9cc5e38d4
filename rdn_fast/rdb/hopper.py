"""The residual dense block in CUDA C++ for Hopper GPUs (compute capability 9.0): wgmma, TMA, nine taps out of one copy.

Its kernels (hopper.cu) were compiled, and executed on a host with stand-ins for Hopper's instructions, never on a card.
On a card it runs only after a trial there has passed.

Planes [S, N, 8, H, W, 8] hold a block's feature maps, 64 channels each, in groups of 8. The block's input takes the
first X = ceil(G0 / 64) planes and each layer's output one more: S = X + C. Channels beyond G0 or G are zero. A layer
writes its own plane, so nothing is concatenated. hopper_layout.Packing defines the order of the weights.

The backward pass is a dense block in reverse, as in triton_planes: the gradient of plane s is the fusion's, and the sum
over the layers that read plane s of transposed convolutions of their gradients, in one launch. The weight gradients of
all layers are one launch, those of the fusion another one. The order of summation depends on nothing but the shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from rdn_fast.devices import current_gpu
from rdn_fast.devices.cuda_kernels import Boxes, Kernels, missing_toolchain, nvrtc_version
from rdn_fast.errors import UserError
from rdn_fast.rdb.hopper_layout import (
    CHANNELS,
    COLS,
    DEFINES,
    GRADIENT_MEMORY,
    ROWS,
    SIDE,
    SUM_MEMORY,
    THREADS,
    Packing,
    gradient_order,
    packing,
)
from rdn_fast.rdb.trial import flaw_on
from rdn_fast.rdb.triton_tiles import Block, flatten, split

SOURCE = Path(__file__).with_name("hopper.cu")
HEADER = Path(__file__).with_name("hopper_ptx.cuh")
TYPES = {torch.float16: "f16", torch.bfloat16: "bf16"}
TILE = CHANNELS * CHANNELS  # weights of a tap
PROGRAMS = 396  # of a weight gradient, at most: three for each multiprocessor of an H100

kernels = Kernels(SOURCE, HEADER)


def missing() -> str | None:
    """Return why this impl cannot run on the current card, or None: it has computed blocks there as naive does."""
    if reason := missing_toolchain((9, 0)):
        return reason
    return flaw_on(current_gpu(), "--rdb hopper", f"{__name__}_trial", _version())


@cache
def _version() -> str:
    """Return what tells the kernels as compiled here from others."""
    files = *sorted(SOURCE.parent.glob("hopper*.*")), SOURCE.with_name("triton_tiles.py")
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return f"{digest[:12]}, NVRTC {nvrtc_version()}"


def options(dtype: torch.dtype) -> list[str]:
    """Return the compiler's options for kernels of this dtype."""
    defines = {"TYPE": TYPES[dtype]} | DEFINES
    return ["--gpu-architecture=sm_90a", *(f"-D{name}={value}" for name, value in defines.items())]


def pack(blocks: Sequence[tuple[Sequence[torch.Tensor], torch.Tensor]], dtype: torch.dtype) -> torch.Tensor:
    """Return the weights of equal blocks (conv_w, fuse_w) in `dtype` as the kernels read them, [blocks, elements]."""
    flat = flatten(blocks, dtype)
    return flat.index_select(1, packing(Block.of(*blocks[0]), flat.device).weights)


def rdb(x, conv_w, conv_b, fuse_w, fuse_b, packed=None):
    """x: [B, G0, H, W], float16 or bfloat16 -> y: [B, G0, H, W], channels_last. Raise UserError when G exceeds 64.

    packed: pack() of the block, [elements]; the gradients have the weights' dtype, which may then be float32.
    Fastest when all 4-D arguments are channels_last, G is 64, G0 a multiple of 64, H one of 32 and W one of 16.
    """
    if (g := conv_w[0].shape[0]) > CHANNELS:
        raise UserError(f"--rdb hopper: computes growth rates up to {CHANNELS}, not {g}; choose another --rdb")
    if packed is None:
        (packed,) = pack([(conv_w, fuse_w)], x.dtype)
    return _Block.apply(x, packed, fuse_w, fuse_b, *conv_w, *conv_b)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, packed, fuse_w, fuse_b, *convs):
        conv_w, conv_b = convs[: len(convs) // 2], convs[len(convs) // 2 :]
        (batch, g0, height, width), block = x.shape, Block.of(conv_w, fuse_w)
        planes = x.new_empty(-(-g0 // CHANNELS) + len(conv_w), batch, 8, height, width, 8)
        _to_planes(x, planes[: -len(conv_w)])
        biases = torch.cat([*conv_b, fuse_b]).float()
        y = _forward(planes, packed, biases, block)
        ctx.save_for_backward(planes, packed)
        ctx.block, ctx.dtype = block, fuse_w.dtype
        return _from_planes(y, g0)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (planes, packed), block = ctx.saved_tensors, ctx.block
        s, layers, order = len(planes), block.layers, packing(block, dy.device)
        x_planes = s - layers
        # d: the planes of dy, one of each layer's gradient (the last layer first), those of x's gradient.
        d = planes.new_empty(x_planes + s, *planes.shape[1:])
        _to_planes(dy, d[:x_planes])
        biases = _data_gradients(d, planes, packed[order.half :], block)[:, : block.g].to(ctx.dtype).unbind()
        of_layers = [(s - 1 - i, plane) for i in range(layers) for plane in range(x_planes + i)]
        of_fusion = [(q, plane) for q in range(x_planes) for plane in range(s)]
        sums = d.new_empty(order.half, dtype=torch.float32)
        first = 9 * TILE * len(of_layers)
        _weight_gradients("layer_weights", d, planes, of_layers, sums[:first])
        _weight_gradients("fusion_weights", d, planes, of_fusion, sums[first:])
        *conv_w, fuse_w = split(sums.index_select(0, order.gradients).to(ctx.dtype), block)
        fuse_b = dy.sum((0, 2, 3), dtype=torch.float32).to(ctx.dtype)
        return _from_planes(d[s:], block.g0), None, fuse_w, fuse_b, *conv_w, *biases


def _to_planes(x, planes):
    """Copy x [N, G0, H, W] to planes [X, N, 8, H, W, 8]; set the channels beyond G0 to zero."""
    rest = len(planes) * CHANNELS - x.shape[1]
    x = F.pad(x, (0, 0, 0, 0, 0, rest)) if rest else x
    planes.copy_(x.unflatten(1, (len(planes), 8, 8)).permute(1, 0, 2, 4, 5, 3))


def _from_planes(planes, g0):
    """Return planes [X, N, 8, H, W, 8] as [N, G0, H, W], channels_last."""
    return planes.permute(1, 3, 4, 0, 2, 5).flatten(3)[..., :g0].permute(0, 3, 1, 2)


def _boxes(planes, rows, cols, groups):
    """Return planes [.., N, 8, H, W, 8] with a box of `groups` x rows x cols pixels of 8 channels."""
    return Boxes(planes.flatten(0, 2).flatten(2), (groups, rows, 8 * cols))


def _tiles(planes, rows, cols):
    """Return the number of tiles of all images, and across and down an image."""
    _, batch, _, height, width, _ = planes.shape
    across, down = -(-width // cols), -(-height // rows)
    return batch * across * down, across, down


def _forward(planes, packed, biases, block):
    """Compute the layers' planes of planes [S, N, 8, H, W, 8] and return those of y, [X, ...].

    biases: the layers', then the fusion's, float32.
    """
    (s, batch), g = planes.shape[:2], block.g
    sources = s - block.layers
    y = torch.empty_like(planes[:sources])
    tiles, across, down = _tiles(planes, ROWS, COLS)
    steps, result, of_y = _boxes(planes, ROWS + 2, COLS + 2, 4), _boxes(planes, ROWS, COLS, 8), _boxes(y, ROWS, COLS, 8)
    for i in range(block.layers):
        weights = packed[9 * TILE * Packing.tiles_before(i, sources) :]
        sizes = 0, 2 * (sources + i), 0, sources + i, g, batch, across, down
        launch("layer", (tiles, 1), SUM_MEMORY, steps, result, result, weights, biases[g * i :], biases, *sizes)
    fusion, of_fusion = packed[9 * TILE * Packing.tiles_before(block.layers, sources) :], biases[g * block.layers :]
    for q in range(sources):
        weights, bias = fusion[TILE * q * s :], of_fusion[CHANNELS * q :]
        sizes = 2 * s, 2 * s, q, q, min(CHANNELS, len(bias)), batch, across, down
        launch("residual", (tiles, 1), SUM_MEMORY, steps, result, of_y, weights, bias, biases, *sizes)
    return y


def _data_gradients(d, planes, weights, block):
    """Compute the planes of d [X + S, ...] after dy's X planes. Return the biases' gradients, float32 [C, K]."""
    s, batch = planes.shape[:2]
    sources = s - block.layers
    tiles, across, down = _tiles(planes, ROWS, COLS)
    sums = d.new_empty(block.layers, tiles * 2, CHANNELS, dtype=torch.float32)
    steps, result, mask = _boxes(d, ROWS + 2, COLS + 2, 4), _boxes(d, ROWS, COLS, 8), _boxes(planes, ROWS, COLS, 8)
    for plane in gradient_order(sources, s):
        of_input = plane < sources
        later = s - max(plane + 1, sources)
        name, other, written = ("residual", result, s + plane) if of_input else ("gradient", mask, sources + later)
        sizes = 2 * sources, 2 * (sources + later), plane, written, 0, batch, across, down
        rows = sums[max(plane - sources, 0)]
        launch(name, (tiles, 1), SUM_MEMORY, steps, other, result, weights, rows, rows, *sizes)
        weights = weights[TILE * (sources + 9 * later) :]
    return sums.sum(1)


def _weight_gradients(name, d, planes, pairs, sums):
    """Compute sums, float32 [pairs, taps, 64, 64] flat, of products of planes of d and of planes over all pixels."""
    tiles, across, down = _tiles(planes, SIDE, SIDE)
    span = max(1, -(-tiles // max(1, PROGRAMS // len(pairs))))
    splits = -(-tiles // span)
    halves = 2 if len(sums) == len(pairs) * TILE else 1  # with one tap, each warpgroup sums half of a tile's pixels
    partial = d.new_empty(splits * halves, len(sums), dtype=torch.float32)
    gradients, edged = _boxes(d, SIDE, SIDE, 8), _boxes(planes, SIDE + 2, SIDE + 2, 8)
    sizes = planes.shape[1], across, down, tiles, span
    launch(name, (len(pairs), splits), GRADIENT_MEMORY, gradients, edged, _pairs(*pairs, d.device), partial, *sizes)
    torch.sum(partial, 0, out=sums)


@cache
def _pairs(*pairs_and_device):
    *pairs, device = pairs_and_device
    return torch.tensor(pairs, dtype=torch.int32, device=device)


def launch(name, grid, memory, *arguments):
    """Launch a kernel of hopper.cu. All launches pass here: tests replace it to run without a GPU.

    memory: bytes of shared memory. arguments: Boxes, tensors and ints; the first one tells the dtype.
    """
    if 0 in grid:  # there are no images
        return
    kernels.launch(name, grid, THREADS, memory, arguments, options(arguments[0].tensor.dtype))
