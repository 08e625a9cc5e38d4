"""The dense block in bf16 on the matrix tiles of Intel's Xeons since 2023 (AMX): 512 products a cycle and core.

The kernels are in amx.c, what calls them is in in_c.py. Sums are accumulated in float32 and rounded once.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from rdn_fast import native
from rdn_fast.devices import has_matrix_tiles
from rdn_fast.rdb.in_c import BlockInC, Kernels

SOURCE = Path(__file__).with_name("amx.c")
PLAIN = "-DPLAIN_TILES"  # builds the tile operations in plain C, slow, to test the rest on any processor


class TileKernels(Kernels):
    """amx.c with the processor's tiles."""

    @property
    def obstacle(self) -> str | None:
        if not has_matrix_tiles():
            return "needs a processor with AMX bf16 tiles (Intel Xeon since 2023)"
        return super().obstacle

    def _load(self) -> ctypes.CDLL:
        if (reason := self.obstacle) is not None:
            raise native.CannotBuild(reason)
        library = super()._load()
        if (tiles := library.rdn_tiles()) == 0:
            raise native.CannotBuild("needs a compiler that knows AMX (gcc 11, clang 12 or newer)")
        if tiles < 0:
            raise native.CannotBuild("needs a kernel that grants AMX tiles (Linux 5.16 or newer)")
        return library


block = BlockInC(TileKernels(SOURCE), torch.bfloat16)
rdb, frozen, missing = block.rdb, block.frozen, block.missing
