"""The planes in which npu_conv keeps feature maps, and how they are cut into tiles.

A plane [pixels, K] holds K channels of all images of the batch: HEAD rows of zeros, of each image its rows and one row
of zeros, and zeros at the end. A row is the width rounded up to 16 pixels, with zeros on the right. So a tile of whole
rows is contiguous, the rows above and below it included, and none needs a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from rdn_fast.rdb.npu_conv_kernels import HEAD, STEP

TILE = 256  # pixels of a tile, at most: 64 KiB of float32 sums in L0C, of 128
TAIL = 2  # rows of zeros after a plane's last step


@dataclass(frozen=True)
class Planes:
    """A block's sizes, and those of its planes and tiles."""

    batch: int
    height: int
    width: int
    g0: int
    g: int
    layers: int

    @cached_property
    def k(self) -> int:
        return max(k for k in (16, 32, 48, 64) if self.g0 % k == 0 == self.g % k)

    @property
    def inputs(self) -> int:
        return self.g0 // self.k  # X: planes of x

    @property
    def outputs(self) -> int:
        return self.g // self.k  # planes of a layer

    @property
    def gradients(self) -> int:
        return self.layers * self.outputs  # planes of all layers

    @property
    def row(self) -> int:
        return -(-self.width // 16) * 16  # pixels

    @property
    def rows(self) -> int:
        return min(self.height, TILE // self.row)  # of a tile

    @property
    def tiles(self) -> int:
        return -(-self.height // self.rows)  # of an image

    @property
    def steps(self) -> int:
        return max(1, -(-self.batch * (self.height + 1) * self.row // STEP))  # of the weight gradient

    @property
    def pixels(self) -> int:
        return (HEAD + TAIL) * self.row + self.steps * STEP  # of a plane

    def planes(self, like: torch.Tensor, count: int, channels: int) -> torch.Tensor:
        """Return [count, pixels, channels], with zeros between and around the images and the images uninitialized."""
        planes = like.new_empty(count, self.pixels, channels)
        first, last = HEAD * self.row, HEAD * self.row + self.batch * (self.height + 1) * self.row
        planes[:, :first], planes[:, last:] = 0, 0
        self._lines(planes)[:, :, self.height] = 0
        return planes

    def images(self, planes: torch.Tensor) -> torch.Tensor:
        """Return planes [S, pixels, channels] as a view [S, B, H, row, channels]."""
        return self._lines(planes)[:, :, : self.height]

    def _lines(self, planes: torch.Tensor) -> torch.Tensor:
        size = self.batch * (self.height + 1) * self.row
        lines = planes[:, HEAD * self.row : HEAD * self.row + size]
        return lines.unflatten(1, (self.batch, self.height + 1, self.row))

    def fill(self, planes: torch.Tensor, x: torch.Tensor) -> None:
        """Copy x [B, channels, H, W] to planes, the first channels to the first one; set the columns beyond W to 0."""
        x = F.pad(x, (0, self.row - self.width)).permute(0, 2, 3, 1)
        self.images(planes).copy_(x.unflatten(-1, (len(planes), -1)).permute(3, 0, 1, 2, 4))

    def unfill(self, planes: torch.Tensor) -> torch.Tensor:
        """Return planes as x [B, channels, H, W]."""
        x = self.images(planes)[..., : self.width, :].permute(1, 0, 4, 2, 3)
        return x.flatten(1, 2).contiguous()

    def column(self, planes: torch.Tensor, first: int, at: int) -> torch.Tensor:
        """Return the pixels of column `at`, from `first` rows after the first image's first row on: [rows, S * K]."""
        begin, rows = (HEAD + first) * self.row, self.batch * (self.height + 1)
        return (
            planes[:, begin : begin + rows * self.row].unflatten(1, (rows, self.row))[:, :, at].movedim(0, 1).flatten(1)
        )

    def table(self, biases: torch.Tensor) -> torch.Tensor:
        """Return biases [planes, K] for every pixel of a tile, [planes, rows, row, K], and -inf beyond W: ReLU's 0."""
        table = biases.new_full((len(biases), self.rows, self.row, self.k), -torch.inf)
        table[:, :, : self.width] = biases[:, None, None]
        return table
