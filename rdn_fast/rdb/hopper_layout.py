"""The sizes that hopper's kernels share with its host code, and the orders in which the kernels read the weights."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

from rdn_fast.rdb.triton_tiles import Block, split

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

    A tile is what one plane contributes to another: 64 outputs x 64 inputs, nine taps or one. A kernel reads it in two
    steps of 32 inputs: [2, taps, 4, 64 outputs, 8 inputs]. Channels beyond G0 and G are zero.
    """

    # Of the weights as in triton_tiles.flatten(): tiles of each layer, then of each plane of y; from `half` on, turned
    # tiles, for each plane's gradient in order, of the planes that it is summed from.
    weights: torch.Tensor
    gradients: torch.Tensor  # of the weights' gradients, tiles [taps, 64, 64]: the weights as in triton_tiles.split()

    @property
    def half(self) -> int:
        return len(self.weights) // 2

    @staticmethod
    def tiles_before(layer: int, sources: int) -> int:
        """Return the number of tiles of the layers before this one."""
        return layer * sources + layer * (layer - 1) // 2


@cache
def packing(block: Block, device: torch.device) -> Packing:
    """Return the permutations for blocks of these channels."""
    g0, g, layers = block
    first = [(start, min(CHANNELS, g0 - start)) for start in range(0, g0, CHANNELS)]  # channels of x's planes
    planes = [*first, *((g0 + i * g, g) for i in range(layers))]
    x, zero = len(first), block.count
    *of_layers, of_fusion = (w.flatten(2) for w in split(torch.arange(zero), block))  # [outputs, inputs, taps]
    convs = [[_tile(w[:, begin : begin + n], zero) for begin, n in planes[: x + i]] for i, w in enumerate(of_layers)]
    fusion = [[_tile(of_fusion[a : a + m, begin : begin + n], zero) for begin, n in planes] for a, m in first]
    tiles = [tile for row in (*convs, *fusion) for tile in row]
    turned = [
        tile.transpose(0, 1).flip(2)
        for plane in gradient_order(x, len(planes))
        for tile in (*(row[plane] for row in fusion), *(row[plane] for row in reversed(convs) if plane < len(row)))
    ]
    weights = torch.cat([*map(_steps, tiles), *map(_steps, turned)])
    sums = torch.cat([tile.permute(2, 0, 1).flatten() for tile in tiles])
    place = torch.empty(zero + 1, dtype=torch.int64).scatter_(0, sums, torch.arange(len(sums)))
    return Packing(weights.to(device, torch.int32), place[:zero].to(device, torch.int32))


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
