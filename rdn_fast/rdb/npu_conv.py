"""The residual dense block as convolutions of Ascend's matrix unit, for A2 (910B) and A3 cards, with a backward pass.

Its kernels (npu_conv_kernels) were compiled by Ascend's compiler and executed by an emulator, never on a card. On a
card it runs only after a trial there has passed.

Planes [S, pixels, K] hold a block's feature maps, K channels each: x takes X = G0 / K, each layer G / K more. A layer
writes its own planes, so nothing is concatenated; a convolution of them is the sum of one for each plane.

The backward pass is a dense block in reverse. The gradient of a layer is the sum over the later layers' gradients,
convolved with the turned weights, plus the fusion's part (one matrix product for all maps), where the map is positive.
The weight gradient is a product over pixels. Where the width is a multiple of 16, no zero lies between the end of a row
and the begin of the next, and pairs of those are sums too much: products of single columns, which are subtracted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from torch.autograd.function import once_differentiable

from rdn_fast import ascend
from rdn_fast.config import ModelConfig
from rdn_fast.devices.npu_kernels import check_compiler, toolchain
from rdn_fast.errors import UserError
from rdn_fast.rdb import npu_conv_kernels
from rdn_fast.rdb.npu_conv_planes import TILE, Planes
from rdn_fast.rdb.trial import flaw_on

MOST_SPLITS = 12  # of the pixels in a weight gradient; each has its own sums in memory


def missing() -> str | None:
    """Return why this impl cannot run on the current card, or None: it has computed a block there as naive does."""
    if toolchain.missing:
        return toolchain.missing
    card = torch.device(torch.accelerator.current_accelerator().type, torch.accelerator.current_device_index())
    here = Path(__file__)
    sources = b"".join(file.read_bytes() for file in sorted(here.parent.glob(f"{here.stem}*.py")))
    compiler = f"triton-ascend {metadata.version('triton-ascend')}, CANN {ascend.cann()}"
    return flaw_on(
        card, f"--rdb {here.stem}", f"{__name__}_trial", f"{hashlib.sha256(sources).hexdigest()[:12]}, {compiler}"
    )


def compilations(config: ModelConfig, batch: int, patch: int, dtype: torch.dtype) -> dict[str, Callable[[bool], None]]:
    """Return what compiles each kernel of a training step on [batch, G0, patch, patch], by the kernel's name.

    compile(True) does it for the current card, as the first launch would; compile(False) without a card, only to see
    whether the compiler can. Both raise UserError where it cannot.
    """
    shape = Planes(batch, patch, patch, config.num_features, config.growth_rate, config.num_layers)
    low, sums = (torch.empty(0, dtype=each) for each in (dtype, torch.float32))

    def compilation(kind: str) -> Callable[[bool], None]:
        text = npu_conv_kernels.kernel(kind, shape.k, shape.row, shape.rows, dtype)
        arguments = (low, low, sums, *[0] * 6) if kind == "weight_gradient" else (*[low] * 5, *[0] * 7)
        return lambda card: toolchain.compile(text, arguments) if card else check_compiler(text)

    return {kind: compilation(kind) for kind in npu_conv_kernels.KINDS}


def rdb(x, conv_w, conv_b, fuse_w, fuse_b):
    """x: [B, G0, H, W], float16 or bfloat16 -> y: [B, G0, H, W]. Raise UserError unless 16 divides G0 and G.

    Images wider than TILE pixels are computed in strips that overlap by the receptive field.
    """
    g0, g = x.shape[1], len(conv_b[0])
    if g0 % 16 or g % 16:
        raise UserError(f"--rdb npu_conv: computes multiples of 16 channels, not {g0} and {g}; choose another --rdb")
    width, halo = x.shape[3], len(conv_w)
    if width <= TILE:
        return _Block.apply(x, fuse_w, fuse_b, *conv_w, *conv_b)
    strips = []
    for left in range(0, width, TILE - 2 * halo):
        first, last = max(0, left - halo), min(width, left + TILE - halo)
        y = _Block.apply(x[..., first:last], fuse_w, fuse_b, *conv_w, *conv_b)
        strips.append(y[..., left - first : left - first + TILE - 2 * halo])
    return torch.cat(strips, dim=3)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fuse_w, fuse_b, *convs):
        conv_w, conv_b = convs[: len(convs) // 2], convs[len(convs) // 2 :]
        shape = Planes(len(x), *x.shape[2:], x.shape[1], len(conv_b[0]), len(conv_b))
        k, inputs, outputs = shape.k, shape.inputs, shape.outputs
        count = inputs + shape.gradients
        planes = shape.planes(x, count, k)
        shape.fill(planes[:inputs], x)
        # [planes of layers, sources, ky, kx, output, input]; a layer's later sources stay uninitialized and unread.
        weights = x.new_empty(shape.gradients, count, 3, 3, k, k)
        for j, w in enumerate(conv_w):
            seen = inputs + j * outputs
            parts = w.reshape(outputs, k, seen, k, 3, 3).permute(0, 2, 4, 5, 1, 3)
            weights[j * outputs : (j + 1) * outputs, :seen] = parts
        table = shape.table(torch.cat(conv_b).view(-1, k))
        for i in range(0, shape.gradients, outputs):
            to = planes[inputs + i :]
            _sums(shape, "layer", planes, weights[i:], table[i:], to, to, inputs + i, outputs)
        fusion = fuse_w.reshape(inputs, k, count, k).transpose(1, 2).contiguous()
        table, y = shape.table(fuse_b.view(-1, k)), planes.new_empty(inputs, shape.pixels, k)
        _sums(shape, "fusion", planes, fusion, table, planes, y, count, inputs)
        ctx.shape = shape
        ctx.save_for_backward(planes, weights, fuse_w)
        return shape.unfill(y)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        planes, weights, fuse_w = ctx.saved_tensors
        shape = ctx.shape
        of_output = shape.planes(dy, 1, shape.g0)
        shape.fill(of_output, dy)
        dx, d = _data_gradients(shape, of_output[0], planes, weights, fuse_w)
        conv_w = _weight_gradients(shape, planes, d)
        conv_b = d.sum(1, dtype=torch.float32).to(dy.dtype).view(shape.layers, shape.g)
        of_fusion = torch.matmul(of_output[0].T, planes)  # [S, G0, K]
        of_fusion = of_fusion.transpose(0, 1).reshape(fuse_w.shape)
        return dx, of_fusion, dy.sum((0, 2, 3)), *conv_w, *conv_b.unbind()


def _data_gradients(shape: Planes, of_output, planes, weights, fuse_w):
    """Return the gradient of x [B, G0, H, W], and those of the layers before their ReLUs as planes, first layer first.

    of_output: the gradient of y, [pixels, G0].
    """
    k, inputs, outputs = shape.k, shape.inputs, shape.outputs
    count, turned = len(planes), weights.flip(2, 3).permute(1, 0, 2, 3, 5, 4).contiguous()
    fusion = fuse_w.reshape(shape.g0, count, k).transpose(0, 1)  # [S, G0, K]
    of_maps = torch.matmul(of_output, fusion[inputs:])  # [S - X, pixels, K]: the fusion's part
    residual = of_output.view(-1, inputs, k).transpose(0, 1)
    of_x = torch.baddbmm(residual, of_output.expand(inputs, -1, -1), fusion[:inputs])
    d, last = shape.planes(planes, shape.gradients, k), shape.gradients - outputs
    torch.mul(of_maps[last:], planes[inputs + last :] > 0, out=d[last:])
    for i in reversed(range(0, last, outputs)):
        later = i + outputs
        gate, w, sources = planes[inputs + i :], turned[inputs + i :, later:], shape.gradients - later
        _sums(shape, "gradient", d[later:], w, of_maps[i:], gate, d[i:], sources, outputs)
    dx = torch.empty_like(planes[:inputs])
    _sums(shape, "input_gradient", d, turned, of_x, of_x, dx, shape.gradients, inputs)
    return shape.unfill(dx), d


def _weight_gradients(shape: Planes, planes, d) -> list[torch.Tensor]:
    """Return the gradients of all layers' weights, each [G, G0 + j G, 3, 3]."""
    k, outputs = shape.k, shape.outputs
    text = npu_conv_kernels.weight_gradient(k, shape.row, d.dtype)
    wrong = _across_rows(shape, planes, d) if shape.width == shape.row else None
    gradients = []
    for i in range(0, shape.gradients, outputs):
        seen = shape.inputs + i
        pairs = -(-seen // 2)
        pieces = outputs * pairs * 3
        shares = splits(shape.steps, pieces, toolchain.cores)
        parts = d.new_empty(shares, outputs, 2 * pairs, 3, 3, k, k, dtype=torch.float32)
        items = shares * pieces
        sizes = (shares, pairs, shape.steps, shape.pixels * k, parts[0].numel())
        launch(text, (planes, d[i:], parts, items, *sizes), items)
        gradient = parts.sum(0)[:, :seen]  # [planes of the layer, sources, ky, kx, input, output]
        if wrong is not None:
            gradient[:, :, :, ::2] -= wrong[i : i + outputs, :seen]
        gradients.append(gradient.permute(0, 5, 1, 4, 2, 3).reshape(shape.g, seen * k, 3, 3).to(d.dtype))
    return gradients


def splits(steps: int, pieces: int, cores: int) -> int:
    """Return in how many sums over pixels to compute a weight gradient: those with which the cores end first.

    steps: of a plane. pieces: items of each split. An item takes its steps, and about two more to store its sums.
    """

    def duration(count: int) -> int:
        return -(-count * pieces // cores) * (-(-steps // count) + 2)

    return min(range(1, min(steps, MOST_SPLITS) + 1), key=duration)


def _across_rows(shape: Planes, planes, d) -> torch.Tensor:
    """Return what the kernel sums too much: [gradients, sources, ky, 2, input, output], for kx of 0 and 2.

    Where no zeros lie between them, a row's first pixel meets the last one of another row, and its last one a first.
    """
    last = shape.row - 1
    firsts_of_d, lasts_of_d = shape.column(d, 0, 0), shape.column(d, 0, last)
    products = [
        (shape.column(planes, ky - 2, last).T @ firsts_of_d, shape.column(planes, ky, 0).T @ lasts_of_d)
        for ky in range(3)
    ]
    products = torch.stack([torch.stack(pair) for pair in products])  # [ky, 2, sources * K, gradients * K]
    return products.view(3, 2, len(planes), shape.k, len(d), shape.k).permute(4, 2, 0, 1, 3, 5)


def _sums(shape: Planes, kind: str, planes, weights, term, gate, y, sources: int, chunks: int) -> None:
    """Launch a kernel of npu_conv_kernels.sums, which writes `chunks` planes. weights: [chunk, source, ...]."""
    text = npu_conv_kernels.sums(kind, shape.k, shape.row, shape.rows, planes.dtype)
    tiles = shape.batch * shape.tiles
    sizes = tiles, shape.tiles, shape.height, shape.pixels * shape.k, weights.stride(0)
    launch(text, (planes, weights, term, gate, y, sources, chunks * tiles, *sizes), chunks * tiles)


def launch(text: str, arguments, items: int) -> None:
    """Run a kernel on the card. All launches pass here: tests replace it to run without a card."""
    if items:
        toolchain.launch(text, arguments, items)
