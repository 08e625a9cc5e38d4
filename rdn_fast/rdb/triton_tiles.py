"""The order in which the kernels of triton_planes read weights, and in which they write gradients.

Tiles [T, K, K], [output channel, input channel], hold all weights of a block: for each layer, each plane that it reads,
nine taps; then for each plane of the block's output, each plane, one tap. Channels beyond G0 and G are zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

from rdn_fast.devices import foreach

FUSION_BLOCK = 64, 128  # rows and columns of a block of the fusion's weight gradient: wgmma's least, and two planes
_ZEROS = 8  # after a block's weights: padding refers to the first, and the next block's begin aligned


class Block(NamedTuple):
    """The numbers of a block on which its tiles depend."""

    g0: int
    g: int
    layers: int

    @classmethod
    def of(cls, conv_w: Sequence[torch.Tensor], fuse_w: torch.Tensor) -> Block:
        return cls(fuse_w.shape[0], conv_w[0].shape[0], len(conv_w))

    @property
    def k(self) -> int:
        """Channels of a plane."""
        return max(16, 1 << (self.g - 1).bit_length())

    @property
    def inputs(self) -> int:
        """X: planes of the block's input, and of its output."""
        return -(-self.g0 // self.k)

    @property
    def weights(self) -> list[tuple[int, ...]]:
        """Shapes of the weights in memory, channels last: each layer's, then the fusion's."""
        channels = [self.g0 + i * self.g for i in range(self.layers + 1)]
        return [*((self.g, 3, 3, n) for n in channels[:-1]), (self.g0, 1, 1, channels[-1])]

    @property
    def count(self) -> int:
        """All weights."""
        return sum(map(math.prod, self.weights))

    def first_tile(self, i: int) -> int:
        """Return the number of tiles before those of layer i; i = C: before the fusion's; i = C + 1: all tiles."""
        if i > self.layers:
            return self.first_tile(self.layers) + self.inputs * (self.inputs + self.layers)
        return 9 * (i * self.inputs + i * (i - 1) // 2)


def pack(blocks: Sequence[tuple[Sequence[torch.Tensor], torch.Tensor]], dtype: torch.dtype) -> torch.Tensor:
    """Return the tiles of equal blocks (conv_w, fuse_w) in `dtype`, [blocks, T, K, K], by a few launches for all."""
    block, flat = Block.of(*blocks[0]), flatten(blocks, dtype)
    order, _ = order_of(block, flat.device)
    return flat.index_select(1, order).view(len(blocks), -1, block.k, block.k)


@torch.no_grad()
def flatten(blocks: Sequence[tuple[Sequence[torch.Tensor], torch.Tensor]], dtype: torch.dtype) -> torch.Tensor:
    """Return each block's weights as in split(), then zeros, in `dtype`."""
    block, count = Block.of(*blocks[0]), Block.of(*blocks[0]).count
    flat = blocks[0][1].new_empty(len(blocks), count + _ZEROS, dtype=dtype)
    flat[:, count:].zero_()
    cast = [view for row in flat for view in split(row[:count], block)]
    foreach("copy", cast, [w for conv_w, fuse_w in blocks for w in (*conv_w, fuse_w)])
    return flat


def split(flat: torch.Tensor, block: Block) -> list[torch.Tensor]:
    """Return views of a block's weights one after the other, in their shapes, channels_last: layers, fusion."""
    parts = flat.split([math.prod(shape) for shape in block.weights])
    return [part.view(shape).permute(0, 3, 1, 2) for part, shape in zip(parts, block.weights, strict=True)]


@cache
def order_of(block: Block, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the permutation from a block's weights, as in split(), to its tiles, int32 [T * K * K], and its inverse.

    The inverse is int32 [weights]. All channels beyond G0 and G refer to one more weight after the last.
    """
    g0, g, layers = block
    first = [(start, min(block.k, g0 - start)) for start in range(0, g0, block.k)]  # channels of x's: start, number
    sources = [*first, *((g0 + i * g, g) for i in range(layers))]
    *of_layers, of_fusion = split(torch.arange(block.count), block)
    tiles = []
    for i, w in enumerate(of_layers):
        reads = sources[: len(first) + i]
        tiles += [w[:, start : start + n, tap // 3, tap % 3] for start, n in reads for tap in range(9)]
    tiles += [of_fusion[a : a + m, start : start + n, 0, 0] for a, m in first for start, n in sources]
    padded = [
        F.pad(tile, (0, block.k - tile.shape[1], 0, block.k - tile.shape[0]), value=block.count) for tile in tiles
    ]
    order = torch.stack(padded).flatten()
    place = torch.empty(block.count + 1, dtype=torch.int64).scatter_(0, order, torch.arange(order.numel()))
    return order.to(device, torch.int32), place[: block.count].to(device, torch.int32)


@cache
def programs_of(block: Block, m: int, n: int, device: torch.device) -> tuple[torch.Tensor, int]:
    """Return the programs of the weight gradient as (row, column), int32 [programs, 2], and how many are the layers'.

    The layers' come first, with nonempty blocks of [m, n]; the fusion's have blocks of FUSION_BLOCK.
    """
    k, inputs, layers = block.k, block.inputs, block.layers

    def blocks(rows: int, height: int, width: int, columns) -> list[tuple[int, int]]:
        """columns(row): how many the block's first row of planes has, which has most."""
        return [(i, j) for i in range(-(-rows * k // height)) for j in range(-(-columns(i * height // k) * k // width))]

    of_layers = blocks(layers, m, n, lambda row: 9 * (inputs + layers - 1 - row))
    of_fusion = blocks(inputs, *FUSION_BLOCK, lambda row: inputs + layers)
    return torch.tensor([*of_layers, *of_fusion], dtype=torch.int32, device=device), len(of_layers)
