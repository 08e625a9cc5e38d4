"""The residual dense block as fused Triton kernels on feature planes, for CUDA GPUs; made for Hopper's wgmma and TMA.

Planes [S, N, H, W, K] hold a block's feature maps, each map packed as NHWC. Each layer writes its own plane, so nothing
is concatenated. K is G rounded up to a power of two, 16 at least. The block's input takes the first X = ceil(G0 / K)
planes and each layer's output one more: S = X + C. Channels beyond G0 or G are zero.
Tiles [T, K, K] hold all weights of the block in the order in which the kernels read them; see `_order`.

The backward pass is a dense block in reverse. Let d_i be the gradient before layer i's ReLU. The gradient of plane s is
the fusion's gradient plus the sum over layers i that read plane s of conv_transpose(d_i, weights of i for s). Each
plane is one fused launch over the d_i known so far, the last plane first. The weight gradients of all layers are one
grouped launch. Only planes and tiles are saved for the backward pass.

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
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from rdn_fast.devices import current_gpu
from rdn_fast.errors import UserError
from rdn_fast.rdb.trial import flaw_on
from rdn_fast.rdb.triton_configs import CANDIDATES, KernelConfigs

MOST_CHANNELS = 64  # of a plane: at 128 the accumulators of a useful tile exceed the registers

configs = KernelConfigs(CANDIDATES)


def missing() -> str | None:
    """Return why the kernels cannot be compiled and launched here, or None when they can. The first time, try it."""
    try:
        found = find_spec("triton") and find_spec("triton.tools.tensor_descriptor")  # imports triton
    except Exception as error:  # a broken installation, or a library that it does not find
        return f"needs the package triton, whose import fails: {' '.join(str(error).split()) or repr(error)}"
    if not found:
        return "needs the package triton, 3.6 or newer (CUDA builds of torch bring it)"
    if (card := current_gpu()) is None:  # there they are only compiled, or interpreted
        return None
    return flaw_on(card, "triton_planes", "rdn_fast.rdb.triton_trial", _version())


@cache
def _version() -> str:
    """Return what tells the kernels as compiled here from others."""
    source = Path(__file__).with_name("triton_kernels.py").read_bytes()
    return f"{hashlib.sha256(source).hexdigest()[:12]}, triton {metadata.version('triton')}"


def rdb(x, conv_w, conv_b, fuse_w, fuse_b):
    """x: [B, G0, H, W], float16 or bfloat16 -> y: [B, G0, H, W], channels_last. Raise UserError when G exceeds 64.

    Fastest when all 4-D arguments are channels_last, G is 64, which fills wgmma's rows, and G0 is a multiple of 64.
    """
    if (g := conv_w[0].shape[0]) > MOST_CHANNELS:
        raise UserError(
            f"--rdb triton_planes: computes growth rates up to {MOST_CHANNELS}, not {g}; choose another --rdb"
        )
    return _Block.apply(x, fuse_w, fuse_b, *conv_w, *conv_b)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fuse_w, fuse_b, *convs):
        conv_w, conv_b = convs[: len(convs) // 2], convs[len(convs) // 2 :]
        (batch, g0, height, width), g = x.shape, conv_w[0].shape[0]
        k = max(16, 1 << (g - 1).bit_length())
        sources = -(-g0 // k)
        planes = x.new_empty(sources + len(conv_w), batch, height, width, k)
        _to_planes(x, planes[:sources])
        order, _ = _order(g0, g, len(conv_w), k, x.device)
        flat = [w.permute(0, 2, 3, 1).reshape(-1) for w in (*conv_w, fuse_w)]
        tiles = torch.cat([*flat, x.new_zeros(1)]).index_select(0, order).view(-1, k, k)
        _layers(planes, tiles, conv_b)
        y = torch.empty_like(x, memory_format=torch.channels_last)
        _fusion(planes, tiles, fuse_b, y)
        ctx.save_for_backward(planes, tiles)
        ctx.channels = g0, g
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        planes, tiles = ctx.saved_tensors
        g0, g = ctx.channels
        s, k = planes.shape[0], planes.shape[-1]
        x_planes = -(-g0 // k)
        layers = s - x_planes
        # d: the planes of dy, one of each layer's gradient (the last layer first), those of x's gradient.
        d = planes.new_empty(x_planes + s, *planes.shape[1:])
        _to_planes(dy, d[:x_planes])
        biases = _data_gradients(d, planes, tiles, x_planes)[:, :g].to(dy.dtype).unbind()
        of_layers = _weight_gradients(d[x_planes:s], planes, x_planes, taps=9)
        of_fusion = _weight_gradients(d[:x_planes], planes, x_planes, taps=1)
        _, place = _order(g0, g, layers, k, dy.device)
        shapes = [*((g, 3, 3, g0 + i * g) for i in range(layers)), (g0, 1, 1, g0 + layers * g)]
        weights = torch.cat([of_layers, of_fusion]).index_select(0, place).to(dy.dtype)
        parts = weights.split([torch.Size(shape).numel() for shape in shapes])
        *conv_w, fuse_w = [part.view(shape).permute(0, 3, 1, 2) for part, shape in zip(parts, shapes, strict=True)]
        dx = d[s:].permute(1, 2, 3, 0, 4).flatten(3)[..., :g0].permute(0, 3, 1, 2)
        return dx, fuse_w, dy.sum((0, 2, 3)), *conv_w, *biases


def _to_planes(x, planes):
    """Copy x [N, G0, H, W] to planes [X, N, H, W, K]; set the channels beyond G0 to zero."""
    x = x.permute(0, 2, 3, 1)
    rest = planes.shape[0] * planes.shape[-1] - x.shape[-1]
    planes.copy_((F.pad(x, (0, rest)) if rest else x).unflatten(-1, (planes.shape[0], -1)).permute(3, 0, 1, 2, 4))


@cache
def _order(g0: int, g: int, layers: int, k: int, device: torch.device):
    """Return the permutation from the block's flat weights to its tiles, int32 [T * K * K], and its inverse [weights].

    Flat weights: each layer's [G, 3, 3, G0 + i*G], the fusion's [G0, G0 + C*G], and one zero, to which all channels
    beyond G0 and G refer. Tiles [output channel, input channel]: for each layer, each plane that it reads, nine taps;
    then for each plane of the block's output, each plane, one tap.
    """
    first = [(start, min(k, g0 - start)) for start in range(0, g0, k)]  # channels of x's planes: start, number
    sources = [*first, *((g0 + i * g, g) for i in range(layers))]
    total = sum(g * 9 * (g0 + i * g) for i in range(layers)) + g0 * (g0 + layers * g)
    weights = torch.arange(total)
    tiles = []
    for i in range(layers):
        w, weights = weights[: g * 9 * (g0 + i * g)].view(g, 9, -1), weights[g * 9 * (g0 + i * g) :]
        tiles += [w[:, tap, start : start + n] for start, n in sources[: len(first) + i] for tap in range(9)]
    w = weights.view(g0, -1)
    tiles += [w[a : a + m, start : start + n] for a, m in first for start, n in sources]
    padded = [F.pad(tile, (0, k - tile.shape[1], 0, k - tile.shape[0]), value=total) for tile in tiles]
    order = torch.stack(padded).flatten()
    place = torch.empty(total + 1, dtype=torch.int64).scatter_(0, order, torch.arange(order.numel()))[:total]
    return order.to(device, torch.int32), place.to(device, torch.int32)


def _layers(planes, tiles, biases):
    """Compute each layer's plane of planes [S, N, H, W, K] from those before it, one launch per layer."""
    s, batch, height, width, k = planes.shape
    sources = s - len(biases)

    def run(config):
        across, down = _pixel_tiles(height, width, config)
        box = (1, config["ROWS"], config["COLS"], k)
        maps, weights = _descriptor(planes.flatten(0, 1), box), _descriptor(tiles.flatten(0, 1), (k, k))
        for i, bias in enumerate(biases):
            sizes = (sources + i, _first_tile(i, sources), batch, height, width, across, down)
            tensors = maps, weights, bias, planes[sources + i]
            launch("layer", (batch * down * across,), *tensors, *sizes, K=k, G=len(bias), **config)

    configs.run("layer", run, planes, len(biases))


def _fusion(planes, tiles, bias, y):
    """Compute y [N, G0, H, W], channels_last, = x + bias + conv1x1(all planes)."""
    s, batch, height, width, k = planes.shape
    g0, pixels = len(bias), batch * height * width
    sources = -(-g0 // k)
    weights = tiles[-sources * s :]

    def run(config):
        grid = (-(-pixels // config["P"]), sources)
        launch("fusion", grid, planes, weights, bias, y, s, pixels, G0=g0, K=k, **config)

    configs.run("fusion", run, planes)


def _data_gradients(d, planes, tiles, sources):
    """Compute the planes of d [X + S, N, H, W, K] after dy's X planes. Return the biases' gradients, float32 [C, K]."""
    s, batch, height, width, k = planes.shape
    layers = s - sources

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
            sizes = (plane, later, layers, _first_tile(layers, sources), s, batch, height, width, across, down)
            rows = sums[max(plane - sources, 0)]
            tensors, constants = (gradients, weights, other, result, rows), {"X": sources, "K": k, "OF_INPUT": of_input}
            launch("data_gradient", (programs,), *tensors, *sizes, **constants, **config)
        return sums

    return configs.run("data_gradient", run, planes, layers).sum(1)


def _weight_gradients(d, planes, sources, taps):
    """Return the flat float32 gradients of the layers' tiles (taps=9) or of the fusion's (taps=1).

    d: the planes of the layers' gradients, the last layer first (taps=9), or those of dy (taps=1). Split-K over pixels.
    """
    (rows, *_, k), (s, batch, height, width, _) = d.shape, planes.shape
    pixels = batch * height * width
    size = (_first_tile(rows, sources) if taps == 9 else rows * s) * k * k
    # As many splits as fit into 46 MB, of 1024 pixels at least: about 3 waves on an H100. The same number on every GPU,
    # because it decides the rounding.
    splits = max(1, min(pixels // 1024, 11 * 2**20 // size))
    span = -(-pixels // (splits * 64)) * 64
    splits = -(-pixels // span)
    partial = d.new_empty(splits, size, dtype=torch.float32)

    def run(config):
        programs = _programs(rows, sources, s, taps, k, config["M"], config["N"], d.device)
        grid = (len(programs), splits)
        sizes, constants = (rows, sources, s, pixels, span, size), {"H": height, "W": width, "K": k, "TAPS": taps}
        launch("weight_gradient", grid, d, planes, partial, programs, *sizes, **constants, **config)

    configs.run("weight_gradient", run, planes, taps)
    return partial.sum(0)


@cache
def _programs(rows, sources, s, taps, k, m, n, device):
    """Return the nonempty [M, N] blocks of the weight gradient as (row, column), int32 [programs, 2]."""
    blocks = []
    for row in range(-(-rows * k // m)):
        reads = sources + rows - 1 - row * m // k if taps == 9 else s  # planes that the block's first layer reads: most
        blocks += [(row, column) for column in range(-(-reads * taps * k // n))]
    return torch.tensor(blocks, dtype=torch.int32, device=device)


def _first_tile(i, sources):
    """Return the number of tiles before those of layer i; i = C: before the fusion's."""
    return 9 * (i * sources + i * (i - 1) // 2)


def _pixel_tiles(height, width, config):
    """Return the numbers of pixel tiles across and down an image. Vertical neighbours overlap by two rows."""
    return -(-width // config["COLS"]), max(1, -(-(height - 2) // (config["ROWS"] - 2)))


def _descriptor(tensor, box):
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(tensor, list(box))


def launch(name, grid, *args, **config):
    """Launch a kernel of triton_kernels. All launches pass here: tests replace it to compile without a GPU."""
    from rdn_fast.rdb import triton_kernels

    getattr(triton_kernels, name)[grid](*args, **config)
