"""The dense block in bf16 on the matrix tiles of Intel's Xeons since 2023 (AMX): 512 products a cycle and core.

The kernels are in amx.c, what calls them is in in_c.py. Sums are accumulated in float32 and rounded once.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import torch

from rdn_fast import native
from rdn_fast.devices import has_matrix_tiles
from rdn_fast.rdb.in_c import BlockInC, Kernels

SOURCE = Path(__file__).with_name("amx.c")
PLAIN = "-DPLAIN_TILES"  # builds the tile operations in plain C, slow, to test the rest on any processor
# -march=native leaves tiles out where the system has not switched them on, which would look like an old compiler.
TILES = ("-mamx-tile", "-mamx-bf16")

REFUSALS = {  # what the kernel answers to a process that asks for tiles
    errno.EINVAL: "needs a kernel that grants AMX tiles (Linux 5.16 or newer)",
    errno.EOPNOTSUPP: "needs AMX tiles that the kernel and, in a virtual machine, its host have switched on",
    errno.ENOSPC: "needs alternate signal stacks with room for AMX tiles; some other library has set a smaller one",
}


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
        try:
            library = super()._load()
        except native.CannotBuild as error:
            if "-mamx" in str(error):
                raise native.CannotBuild("needs a compiler that knows AMX (gcc 11, clang 12 or newer)") from None
            raise
        if (granted := library.rdn_tiles()) < 0:
            other = f"may not use AMX tiles here: {os.strerror(-granted)}"
            raise native.CannotBuild(REFUSALS.get(-granted, other))
        return library


block = BlockInC(TileKernels(SOURCE, *TILES), torch.bfloat16)
rdb, frozen, missing = block.rdb, block.frozen, block.missing
