"""The residual dense block as fused Triton kernels on feature planes, for CUDA GPUs; made for Hopper's wgmma and TMA.

Planes [S, N, H, W, K] hold a block's feature maps, each map packed as NHWC. Each layer writes its own plane, so nothing
is concatenated. K is G rounded up to a power of two, 16 at least. The block's input takes the first X = ceil(G0 / K)
planes and each layer's output one more: S = X + C. Channels beyond G0 or G are zero.
Tiles [T, K, K] hold all weights of the block in the order in which the kernels read them (triton_tiles).

The backward pass is a dense block in reverse. Let d_i be the gradient before layer i's ReLU. The gradient of plane s is
the fusion's gradient plus the sum over layers i that read plane s of conv_transpose(d_i, weights of i for s). Each
plane is one fused launch over the d_i known so far, the last plane first. All weight gradients are one grouped launch,
and one more sums what programs computed, for the biases too, and writes it where and as the parameters lie in memory.
Only planes and tiles are saved for the backward pass. A block is C + 2 launches forward and C + 4 backward, if G0 <= K.

The order of summation is fixed: results do not depend on the order in which programs finish. Which configuration was
chosen changes only the biases' gradients, by rounding.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.autograd.function import once_differentiable

from rdn_fast.devices import current_gpu
from rdn_fast.errors import UserError
from rdn_fast.rdb import naive
from rdn_fast.rdb.trial import flaw_on
from rdn_fast.rdb.triton_configs import CANDIDATES, KernelConfigs
from rdn_fast.rdb.triton_tiles import FUSION_BLOCK, Block, order_of, pack, programs_of, split

MOST_CHANNELS = 64  # of a plane: at 128 the accumulators of a useful tile exceed the registers

configs = KernelConfigs(CANDIDATES)


def missing() -> str | None:
    """Return why the kernels cannot be compiled and launched here, or None when they can. The first time, try it."""
    if (reason := triton_missing()) is not None:
        return reason
    if (card := current_gpu()) is None:  # there they are only compiled, or interpreted
        return None
    return flaw_on(card, "--rdb triton_planes", "rdn_fast.rdb.triton_trial", _version())


def triton_missing() -> str | None:
    """Return why Triton cannot be used, or None when it can."""
    try:
        found = find_spec("triton") and find_spec("triton.tools.tensor_descriptor")  # imports triton
    except Exception as error:  # a broken installation, or a library that it does not find
        return f"needs the package triton, whose import fails: {' '.join(str(error).split()) or repr(error)}"
    return None if found else "needs the package triton, 3.6 or newer (CUDA builds of torch bring it)"


@cache
def _version() -> str:
    """Return what tells the kernels as compiled here from others."""
    sources = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("triton_*.py")))
    return f"{hashlib.sha256(sources).hexdigest()[:12]}, triton {metadata.version('triton')}"


def rdb(x, conv_w, conv_b, fuse_w, fuse_b, packed=None):
    """x: [B, G0, H, W], float16 or bfloat16 -> y: [B, G0, H, W], channels_last. Raise UserError when G exceeds 64.

    packed: pack() of the block, [T, K, K]; the gradients have the weights' dtype, which may then be float32.
    Fastest when all 4-D arguments are channels_last, G is 64, which fills wgmma's rows, and G0 is 64.
    """
    if (g := conv_w[0].shape[0]) > MOST_CHANNELS:
        raise UserError(
            f"--rdb triton_planes: computes growth rates up to {MOST_CHANNELS}, not {g}; choose another --rdb"
        )
    if not len(x):  # no descriptor can be made of empty planes
        conv_w, conv_b = ([tensor.to(x.dtype) for tensor in tensors] for tensors in (conv_w, conv_b))
        return naive.rdb(x, conv_w, conv_b, fuse_w.to(x.dtype), fuse_b.to(x.dtype))
    if packed is None:
        (packed,) = pack([(conv_w, fuse_w)], x.dtype)
    return _Block.apply(x, packed, fuse_w, fuse_b, *conv_w, *conv_b)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, tiles, fuse_w, fuse_b, *convs):
        conv_w, conv_b = convs[: len(convs) // 2], convs[len(convs) // 2 :]
        batch, _, height, width = x.shape
        block = Block.of(conv_w, fuse_w)
        planes = x.new_empty(block.inputs + block.layers, batch, height, width, block.k)
        _to_planes(x, planes, block)
        _layers(planes, tiles, conv_b, block)
        y = torch.empty_like(x, memory_format=torch.channels_last)
        _fusion(planes, tiles, fuse_b, y, block)
        ctx.save_for_backward(planes, tiles)
        ctx.block, ctx.dtype = block, fuse_w.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        planes, tiles = ctx.saved_tensors
        block = ctx.block
        # d: the planes of dy, one of each layer's gradient (the last layer first), those of x's gradient.
        d = planes.new_empty(block.inputs + len(planes), *planes.shape[1:])
        of_output = _to_planes(dy, d, block, sums=True)
        of_layers = _data_gradients(d, planes, tiles, block)
        partial = _weight_gradients(d, planes, block)
        flat = planes.new_empty(block.count + block.layers * block.g + block.g0, dtype=ctx.dtype)
        _reduce(partial, of_layers, of_output, flat, planes, block)
        *conv_w, fuse_w = split(flat[: block.count], block)
        *conv_b, fuse_b = flat[block.count :].split([*[block.g] * block.layers, block.g0])
        dx = d[len(planes) :].permute(1, 2, 3, 0, 4).flatten(3)[..., : block.g0].permute(0, 3, 1, 2)
        return dx, None, fuse_w, fuse_b, *conv_w, *conv_b


def _to_planes(x, planes, block, sums=False):
    """Copy x [N, G0, H, W] to the first X planes. If `sums`, return those of x in parts, float32 [X, programs, K]."""
    _, batch, height, width, k = planes.shape
    pixels = batch * height * width

    def run(config):
        grid = -(-pixels // config["P"]), block.inputs
        parts = planes.new_empty(block.inputs, grid[0] if sums else 0, k, dtype=torch.float32)
        sizes, constants = (pixels, height, width, *x.stride()), {"G0": block.g0, "K": k, "SUMS": sums}
        launch("to_planes", grid, x, planes, parts, *sizes, **constants, **config)
        return parts

    return configs.run("to_planes", run, planes, sums)


def _layers(planes, tiles, biases, block):
    """Compute each layer's plane of planes [S, N, H, W, K] from those before it, one launch per layer."""
    _, batch, height, width, k = planes.shape

    def run(config):
        across, down = _pixel_tiles(height, width, config)
        box = (1, config["ROWS"], config["COLS"], k)
        maps, weights = _descriptor(planes.flatten(0, 1), box), _descriptor(tiles.flatten(0, 1), (k, k))
        for i, bias in enumerate(biases):
            sizes = (block.inputs + i, block.first_tile(i), batch, height, width, across, down)
            tensors = maps, weights, bias, planes[block.inputs + i]
            launch("layer", (batch * down * across,), *tensors, *sizes, K=k, G=block.g, **config)

    configs.run("layer", run, planes, block.layers)


def _fusion(planes, tiles, bias, y, block):
    """Compute y [N, G0, H, W], channels_last, = x + bias + conv1x1(all planes)."""
    s, batch, height, width, k = planes.shape
    pixels, weights = batch * height * width, tiles[block.first_tile(block.layers) :]

    def run(config):
        grid = (-(-pixels // config["P"]), block.inputs)
        launch("fusion", grid, planes, weights, bias, y, s, pixels, G0=block.g0, K=k, **config)

    configs.run("fusion", run, planes)


def _data_gradients(d, planes, tiles, block):
    """Compute the planes of d [X + S, N, H, W, K] after dy's X planes.

    Return the biases' gradients in parts, float32 [C, programs, K].
    """
    s, batch, height, width, k = planes.shape
    layers, sources = block.layers, block.inputs

    def run(config):
        across, down = _pixel_tiles(height, width, config)
        programs = batch * down * across
        box = (1, config["ROWS"], config["COLS"], k)
        gradients, weights = _descriptor(d.flatten(0, 1), box), _descriptor(tiles.flatten(0, 1), (k, k))
        sums = d.new_empty(layers, programs, k, dtype=torch.float32)
        for plane in (*reversed(range(sources, s)), *range(sources)):
            of_input = plane < sources
            later = layers if of_input else s - 1 - plane
            other, result = (d[plane], d[s + plane]) if of_input else (planes[plane], d[sources + later])
            sizes = (plane, later, layers, block.first_tile(layers), s, batch, height, width, across, down)
            rows = sums[max(plane - sources, 0)]
            tensors, constants = (gradients, weights, other, result, rows), {"X": sources, "K": k, "OF_INPUT": of_input}
            launch("data_gradient", (programs,), *tensors, *sizes, **constants, **config)
        return sums

    return configs.run("data_gradient", run, planes, layers)


def _weight_gradients(d, planes, block):
    """Return the gradients of all tiles in parts, float32 [splits, T * K * K]: split-K over pixels."""
    s, batch, height, width, k = planes.shape
    pixels, first_fusion = batch * height * width, block.first_tile(block.layers)
    size = (first_fusion + block.inputs * s) * k * k
    # As many splits as fit into 46 MB, of 1024 pixels at least: about 3 waves on an H100. The same number on every GPU,
    # because it decides the rounding.
    splits = max(1, min(pixels // 1024, 11 * 2**20 // size))
    span = -(-pixels // (splits * 64)) * 64
    splits = -(-pixels // span)
    partial = d.new_empty(splits, size, dtype=torch.float32)

    def run(config):
        programs, of_layers = programs_of(block, config["M"], config["N"], d.device)
        tensors = d, d[block.inputs :], planes, partial, programs
        sizes = (of_layers, block.layers, block.inputs, s, first_fusion, pixels, span, size)
        constants = {"H": height, "W": width, "K": k, "FUSION_M": FUSION_BLOCK[0], "FUSION_N": FUSION_BLOCK[1]}
        launch("weight_gradient", (len(programs), splits), *tensors, *sizes, **constants, **config)

    configs.run("weight_gradient", run, planes)
    return partial


def _reduce(partial, of_layers, of_output, flat, planes, block):
    """Write a block's gradients to `flat`: its weights as split() has them, then the layers' biases, the fusion's.

    of_layers, of_output: the biases' gradients in parts, float32 [C, programs, K] and [X, programs, K].
    """
    _, place = order_of(block, flat.device)

    def run(config):
        grid = (-(-block.count // config["P"]) + block.layers + block.inputs,)
        sizes = (block.count, *partial.shape, block.layers, of_layers.shape[1], of_output.shape[1])
        tensors, constants = (partial, place, of_layers, of_output, flat), {"G": block.g, "G0": block.g0, "K": block.k}
        launch("reduce", grid, *tensors, *sizes, **constants, **config)

    configs.run("reduce", run, planes)


def _pixel_tiles(height, width, config):
    """Return the numbers of pixel tiles across and down an image. Vertical neighbours overlap by two rows."""
    return -(-width // config["COLS"]), max(1, -(-(height - 2) // (config["ROWS"] - 2)))


def _descriptor(tensor, box):
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(tensor, list(box))


def launch(name, grid, *args, **config):
    """Launch a kernel. All launches pass here: tests replace it to count them, or to compile without a GPU."""
    kernel(name)[grid](*args, **config)


def kernel(name):
    """Return a kernel by its name."""
    from rdn_fast.rdb import triton_kernels, triton_weight_kernels

    return getattr(triton_kernels, name, None) or getattr(triton_weight_kernels, name)
