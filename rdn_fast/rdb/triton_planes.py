"""The residual dense block as fused Triton kernels on source-major planes, for CUDA GPUs; made for Hopper's wgmma and TMA.

Planes [S, N, H, W, K]: a block's features, each packed NHWC, so that every layer writes its own in place and nothing is ever concatenated.
K is G rounded up to a power of two, 16 at least. x takes the first X = ceil(G0 / K) planes, each layer's output one more: S = X + C;
channels beyond G0 or G are zero. Tiles [T, K, K]: all weights of the block, in the order in which the kernels read them (see `_order`).

A dense block's backward is a dense block: with d_i the gradient of layer i's sum before its ReLU, the gradient of plane s is the
fusion's term + the sum over layers i that see s of convT(d_i, weights of i for s). So one fused launch per plane, last plane first,
each over the d's so far. All weight gradients of the layers are one grouped launch. For the backward pass only planes and tiles are kept.

No sum depends on the order in which programs end. Of the choice from `CONFIGS` only the biases' gradients do, by rounding.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from rdn_fast.devices import DeviceTimer, is_host
from rdn_fast.errors import UserError

MOST_CHANNELS = 64  # of a plane: with 128, the accumulators of a useful tile do not fit in the registers

# By kernel, the configurations worth timing on a card, best guess first. None spills or exceeds an SM's shared memory (tests/test_triton.py).
_PIXELS = (
    {"ROWS": 32, "COLS": 8, "num_warps": 8, "num_stages": 4},
    {"ROWS": 32, "COLS": 8, "num_warps": 8, "num_stages": 3},
    {"ROWS": 32, "COLS": 4, "num_warps": 4, "num_stages": 2},
)
CONFIGS = {
    "layer": _PIXELS,
    "data_gradient": _PIXELS,
    "weight_gradient": (
        {"M": 128, "N": 256, "DEPTH": 64, "CACHE": ".ca", "num_warps": 8, "num_stages": 3},
        {"M": 128, "N": 256, "DEPTH": 64, "CACHE": ".cg", "num_warps": 8, "num_stages": 3},
        {"M": 128, "N": 256, "DEPTH": 64, "CACHE": ".cg", "num_warps": 8, "num_stages": 4},
        {"M": 64, "N": 256, "DEPTH": 64, "CACHE": ".ca", "num_warps": 4, "num_stages": 2},
    ),
    "fusion": (
        {"P": 128, "num_warps": 8, "num_stages": 4},
        {"P": 64, "num_warps": 4, "num_stages": 4},
    ),
}
_chosen = {}


def missing() -> str | None:
    """Why the kernels cannot be compiled here; None when they can."""
    if find_spec("triton") is None or find_spec("triton.tools.tensor_descriptor") is None:
        return "needs the package triton, 3.6 or newer (CUDA builds of torch bring it)"
    return None


def rdb(x, conv_w, conv_b, fuse_w, fuse_b, *, out=None):
    """x: [B, G0, H, W] -> y: [B, G0, H, W] in `out` if given, else channels_last; float16 or bfloat16, G at most 64.

    Cheapest when all 4-D arguments are channels_last, G is 64, which fills wgmma's rows, and G0 a multiple of it. Raises UserError for
    a larger G.
    """
    if conv_w[0].shape[0] > MOST_CHANNELS:
        raise UserError(
            f"--rdb triton_planes: computes growth rates up to {MOST_CHANNELS}, not {conv_w[0].shape[0]}; choose another --rdb"
        )
    return _Block.apply((out,), x, fuse_w, fuse_b, *conv_w, *conv_b)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, out, x, fuse_w, fuse_b, *convs):
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
        # Out of autograd's sight: y is a new tensor that shares out's memory.
        y = torch.empty_like(x, memory_format=torch.channels_last) if out[0] is None else out[0].detach()
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
        # d: the planes of dy, those of the layers' gradients (the last layer first), those of the gradient of x.
        d = planes.new_empty(x_planes + s, *planes.shape[1:])
        _to_planes(dy, d[:x_planes])
        biases = _data_gradients(d, planes, tiles, x_planes)[:, :g].to(dy.dtype).unbind()
        weights = torch.cat(
            [
                _weight_gradients(d[x_planes:s], planes, x_planes, taps=9),
                _weight_gradients(d[:x_planes], planes, x_planes, taps=1),
            ]
        )
        _, place = _order(g0, g, layers, k, dy.device)
        shapes = [*((g, 3, 3, g0 + i * g) for i in range(layers)), (g0, 1, 1, g0 + layers * g)]
        parts = weights.index_select(0, place).to(dy.dtype).split([torch.Size(shape).numel() for shape in shapes])
        *conv_w, fuse_w = [part.view(shape).permute(0, 3, 1, 2) for part, shape in zip(parts, shapes, strict=True)]
        dx = d[s:].permute(1, 2, 3, 0, 4).flatten(3)[..., :g0].permute(0, 3, 1, 2)
        return None, dx, fuse_w, dy.sum((0, 2, 3)), *conv_w, *biases


def _to_planes(x, planes):
    """x: [N, G0, H, W] into planes: [X, N, H, W, K]; zeros into the channels beyond G0."""
    x = x.permute(0, 2, 3, 1)
    rest = planes.shape[0] * planes.shape[-1] - x.shape[-1]
    planes.copy_((F.pad(x, (0, rest)) if rest else x).unflatten(-1, (planes.shape[0], -1)).permute(3, 0, 1, 2, 4))


@cache
def _order(g0: int, g: int, layers: int, k: int, device: torch.device):
    """Where a tile's element lies in the block's flat weights, int32 [T * K * K], and the inverse of it, int32 [weights].

    Flat: every layer's [G, 3, 3, G0 + i*G], the fusion's [G0, G0 + C*G], one zero, which the channels beyond G0 and G refer to. Tiles
    [output channel, input channel]: of every layer, of every source plane that it sees, nine taps; then of every plane of the block's
    output, of every plane, one.
    """
    first = [(start, min(k, g0 - start)) for start in range(0, g0, k)]  # channels of each plane of x: start, number
    sources = [*first, *((g0 + i * g, g) for i in range(layers))]
    total = sum(g * 9 * (g0 + i * g) for i in range(layers)) + g0 * (g0 + layers * g)
    weights = torch.arange(total)
    tiles = []
    for i in range(layers):
        w, weights = weights[: g * 9 * (g0 + i * g)].view(g, 9, -1), weights[g * 9 * (g0 + i * g) :]
        tiles += [w[:, tap, start : start + n] for start, n in sources[: len(first) + i] for tap in range(9)]
    w = weights.view(g0, -1)
    tiles += [w[a : a + m, start : start + n] for a, m in first for start, n in sources]
    order = torch.stack(
        [F.pad(tile, (0, k - tile.shape[1], 0, k - tile.shape[0]), value=total) for tile in tiles]
    ).flatten()
    place = torch.empty(total + 1, dtype=torch.int64).scatter_(0, order, torch.arange(order.numel()))[:total]
    return order.to(device, torch.int32), place.to(device, torch.int32)


def _layers(planes, tiles, biases):
    """Fill the layers' planes of planes [S, N, H, W, K], one launch each, from the planes before it."""
    s, batch, height, width, k = planes.shape
    sources = s - len(biases)

    def run(config):
        across, down = _pixel_tiles(height, width, config)
        box = (1, config["ROWS"], config["COLS"], k)
        maps, weights = _descriptor(planes.flatten(0, 1), box), _descriptor(tiles.flatten(0, 1), (k, k))
        for i, bias in enumerate(biases):
            sizes = (sources + i, _first_tile(i, sources), batch, height, width, across, down)
            launch(
                "layer",
                (batch * down * across,),
                maps,
                weights,
                bias,
                planes[sources + i],
                *sizes,
                K=k,
                G=len(bias),
                **config,
            )

    _fastest("layer", run, planes, len(biases))


def _fusion(planes, tiles, bias, y):
    """y [N, G0, H, W] = x + bias + 1x1 convolution of all planes."""
    s, batch, height, width, k = planes.shape
    g0, pixels = len(bias), batch * height * width
    sources = -(-g0 // k)
    weights = tiles[-sources * s :]

    def run(config):
        grid = (-(-pixels // config["P"]), sources)
        launch(
            "fusion",
            grid,
            planes,
            weights,
            bias,
            y,
            s,
            pixels,
            height * width,
            width,
            *y.stride(),
            G0=g0,
            K=k,
            **config,
        )

    _fastest("fusion", run, planes, y.stride(1))


def _data_gradients(d, planes, tiles, sources):
    """Fill d [X + S, N, H, W, K], whose first X planes are dy's; the gradients of the biases, float32 [C, K]."""
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
            launch(
                "data_gradient",
                (programs,),
                gradients,
                weights,
                other,
                result,
                rows,
                *sizes,
                X=sources,
                K=k,
                OF_INPUT=of_input,
                **config,
            )
        return sums

    return _fastest("data_gradient", run, planes, layers).sum(1)


def _weight_gradients(d, planes, sources, taps):
    """Gradients, flat and in float32, of the layers' tiles (taps 9, d: the layers' planes, the last layer first) or the fusion's (taps 1, d: dy's)."""
    (rows, *_, k), (s, batch, height, width, _) = d.shape, planes.shape
    pixels = batch * height * width
    size = (_first_tile(rows, sources) if taps == 9 else rows * s) * k * k
    # As many splits as fit into 46 MB, of 1024 pixels at least: about 3 waves on an H100. The same on every card, as it decides the rounding.
    splits = max(1, min(pixels // 1024, 11 * 2**20 // size))
    span = -(-pixels // (splits * 64)) * 64
    splits = -(-pixels // span)
    partial = d.new_empty(splits, size, dtype=torch.float32)

    def run(config):
        programs = _programs(rows, sources, s, taps, k, config["M"], config["N"], d.device)
        grid = (len(programs), splits)
        launch(
            "weight_gradient",
            grid,
            d,
            planes,
            partial,
            programs,
            rows,
            sources,
            s,
            pixels,
            span,
            size,
            H=height,
            W=width,
            K=k,
            TAPS=taps,
            **config,
        )

    _fastest("weight_gradient", run, planes, taps)
    return partial.sum(0)


@cache
def _programs(rows, sources, s, taps, k, m, n, device):
    """The [M, N] pieces of the weight gradient that hold anything, as int32 [programs, 2]: row of pieces, column of pieces."""
    pieces = []
    for row in range(-(-rows * k // m)):
        sees = sources + rows - 1 - row * m // k if taps == 9 else s  # of the piece's first plane, which sees most
        pieces += [(row, column) for column in range(-(-sees * taps * k // n))]
    return torch.tensor(pieces, dtype=torch.int32, device=device)


def _first_tile(i, sources):
    """Number of tiles before those of layer i; i = C: before the fusion's."""
    return 9 * (i * sources + i * (i - 1) // 2)


def _pixel_tiles(height, width, config):
    """How many tiles lie side by side and on top of each other; the latter share two rows (see `_pixels` in triton_kernels)."""
    return -(-width // config["COLS"]), max(1, -(-(height - 2) // (config["ROWS"] - 2)))


def _descriptor(tensor, box):
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(tensor, list(box))


def launch(name, grid, *args, **config):
    """The only place from which kernels run: tests compile without a card by replacing it."""
    from rdn_fast.rdb import triton_kernels

    getattr(triton_kernels, name)[grid](*args, **config)


def _fastest(name, run, planes, *more):
    """run(config) with the configuration of kernel `name` that is fastest for such shapes; timed once on a card, pictures by classes of size."""
    s, batch, height, width, k = planes.shape
    key = name, planes.device, planes.dtype, s, batch, -(-height // 32), -(-width // 32), k, *more
    if key not in _chosen:
        _chosen[key] = _time(name, run, planes.device)
    return run(_chosen[key])


def _time(name, run, device):
    if is_host(device):  # Triton's interpreter
        return CONFIGS[name][0]
    from triton.runtime.errors import OutOfResources

    seconds, watch = [], DeviceTimer(device)
    for number, config in enumerate(CONFIGS[name]):
        try:
            run(config)  # compiles
        except OutOfResources:  # a card with less shared memory than Hopper's
            continue
        watch.read()
        for _ in range(10):
            watch.start()
            run(config)
            watch.stop()
        seconds.append((watch.read(), number))
    if not seconds:
        raise UserError(
            f"--rdb triton_planes: this card has too little shared memory for its kernel {name}; choose another --rdb"
        )
    return CONFIGS[name][min(seconds)[1]]
