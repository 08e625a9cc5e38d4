"""The sizes that hopper's kernels share with its host code, and the orders in which the kernels read the weights."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

CHANNELS = 64  # K: of a plane
ROWS, COLS = 32, 16  # pixels of a convolution's tile
SIDE = 16  # pixels of a weight gradient's tile, in both directions
SUM_STAGES, GRADIENT_STAGES = 3, 3  # of shared memory
THREADS = 384  # two warpgroups that multiply, and one of which a single thread copies

DEFINES = {name: globals()[name] for name in ("ROWS", "COLS", "SIDE", "SUM_STAGES", "GRADIENT_STAGES")}

# Bytes of shared memory: of each stage its data and two barriers.
_PIXEL, _BARRIERS = 16, 16
_STEP = 4 * (ROWS + 2) * (COLS + 2) * _PIXEL + 9 * CHANNELS * 32 * 2
SUM_MEMORY = SUM_STAGES * (_STEP + _BARRIERS)
GRADIENT_MEMORY = GRADIENT_STAGES * (8 * ((SIDE + 2) ** 2 + SIDE**2) * _PIXEL + _BARRIERS)


class Packing(NamedTuple):
    """Permutations of a block's weights, each int32.

    Flat weights: of each layer [G, 3, 3, G0 + i*G], of the fusion [G0, G0 + C*G], then the biases of both and one zero,
    to which all channels beyond G0 and G refer.
    A tile is what one plane contributes to another: 64 outputs x 64 inputs, nine taps or one. A kernel reads it in two
    steps of 32 inputs: [2, taps, 4, 64 outputs, 8 inputs].
    """

    forward: torch.Tensor  # of flat weights: tiles of each layer, of each plane of y; rows of biases; a row of zeros
    backward: torch.Tensor  # of packed weights: for each gradient in order, transposed tiles of what it is summed from
    gradients: torch.Tensor  # of the sums of the weights' gradients: the flat weights

    @staticmethod
    def tiles_before(layer: int, sources: int) -> int:
        """Return the number of tiles of the layers before this one."""
        return layer * sources + layer * (layer - 1) // 2


@cache
def packing(g0: int, g: int, layers: int, device: torch.device) -> Packing:
    """Return the permutations for blocks of these channels."""
    first = [(start, min(CHANNELS, g0 - start)) for start in range(0, g0, CHANNELS)]  # channels of x's planes
    planes = [*first, *((g0 + i * g, g) for i in range(layers))]
    x, s = len(first), len(planes)
    weights = sum(g * 9 * (g0 + i * g) for i in range(layers)) + g0 * (g0 + layers * g)
    zero = weights + layers * g + g0
    rest, convs = torch.arange(weights), []
    for i in range(layers):
        w, rest = rest[: g * 9 * (g0 + i * g)].view(g, 9, -1), rest[g * 9 * (g0 + i * g) :]
        convs.append([_tile(w[:, :, start : start + n].transpose(1, 2), zero) for start, n in planes[: x + i]])
    w = rest.view(g0, -1, 1)
    fusion = [[_tile(w[a : a + m, start : start + n], zero) for start, n in planes] for a, m in first]
    biases = [torch.arange(begin, begin + n) + weights for begin, n in _biases(first, g0, g, layers)]
    rows = [F.pad(row, (0, CHANNELS - len(row)), value=zero) for row in (*biases, torch.tensor([zero]))]
    tiles = [tile for row in (*convs, *fusion) for tile in row]
    forward = torch.cat([*map(_steps, tiles), *rows])
    turned = [
        tile.transpose(0, 1).flip(2)
        for plane in gradient_order(x, s)
        for tile in (*(row[plane] for row in fusion), *(row[plane] for row in reversed(convs) if plane < len(row)))
    ]
    place = torch.empty(zero + 1, dtype=torch.int64)
    backward = place.scatter(0, forward, torch.arange(len(forward)))[torch.cat([*map(_steps, turned)])]
    sums = torch.cat([tile.permute(2, 0, 1).flatten() for tile in tiles])
    gradients = place.scatter(0, sums, torch.arange(len(sums)))[:weights]
    return Packing(*(order.to(device, torch.int32) for order in (forward, backward, gradients)))


def gradient_order(x_planes: int, s: int) -> list[int]:
    """Return the planes in the order in which their gradients are computed: the last layer's first, x's at the end."""
    return [*reversed(range(x_planes, s)), *range(x_planes)]


def _tile(index: torch.Tensor, zero: int) -> torch.Tensor:
    """Pad [outputs, inputs, taps] to [64, 64, taps]."""
    outputs, inputs, _ = index.shape
    return F.pad(index, (0, 0, 0, CHANNELS - inputs, 0, CHANNELS - outputs), value=zero)


def _steps(tile: torch.Tensor) -> torch.Tensor:
    """Order [64 outputs, 64 inputs, taps] as a kernel reads it, flat."""
    return tile.unflatten(1, (2, 4, 8)).permute(1, 4, 2, 0, 3).flatten()


def _biases(first: list[tuple[int, int]], g0: int, g: int, layers: int) -> list[tuple[int, int]]:
    """Return begin and number of each plane's biases: the layers', then those of y."""
    return [*((i * g, g) for i in range(layers)), *((layers * g + start, n) for start, n in first)]
