"""`python -m rdn_fast.rdb.hopper_trial DEVICE`: launch all kernels of hopper there, and check their results.

Like npu_conv_trial: these kernels never ran on a card. The last shape fills an H100, and its results must not move.
"""

from __future__ import annotations

import sys

from rdn_fast.rdb import hopper
from rdn_fast.rdb.npu_conv_trial import verdict
from rdn_fast.rdb.triton_trial import SHAPE, flaw

SHAPES = (SHAPE, (3, 40, 45, 27), (64, 64, 32, 32))  # B, G0 and G, H, W
REPEATS = 5


def main() -> int:
    return verdict(
        lambda device: (flaw(device, hopper.rdb, dtype, shape, REPEATS) for dtype in hopper.TYPES for shape in SHAPES)
    )


if __name__ == "__main__":
    sys.exit(main())
