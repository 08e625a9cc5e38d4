"""The dense block by Winograd convolution F(4x4, 3x3), for float32 on CPUs: a quarter of the multiplications.

The kernels are in winograd.c, what calls them is in in_c.py. Each feature map is transformed once, however many layers
read it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from rdn_fast.rdb.in_c import BlockInC, Kernels

block = BlockInC(Kernels(Path(__file__).with_name("winograd.c")), torch.float32, group=256)
rdb, frozen, missing = block.rdb, block.frozen, block.missing
