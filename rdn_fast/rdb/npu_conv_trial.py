"""`python -m rdn_fast.rdb.npu_conv_trial DEVICE`: launch all kernels of npu_conv there, and check their results.

Like triton_trial, but these kernels never ran on a card: one that the trial cannot use is no card to run them on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import torch

from rdn_fast.devices import pick
from rdn_fast.errors import UserError
from rdn_fast.rdb import npu_conv
from rdn_fast.rdb.npu_conv_kernels import FLOATS
from rdn_fast.rdb.triton_trial import flaw
from rdn_fast.terminal import print_line


def main() -> int:
    return verdict(lambda device: (flaw(device, npu_conv.rdb, dtype) for dtype in FLOATS))


def verdict(flaws: Callable[[torch.device], Iterable[str | None]]) -> int:
    """Look for flaws on the command's device. Print the first one; return the exit code, 0 if there is none."""
    try:
        words = next(filter(None, flaws(pick(sys.argv[1]))), None)
    except (UserError, RuntimeError) as error:
        words = f"a second process cannot use it: {error}"
    if words:
        print_line(words)
    return 1 if words else 0


if __name__ == "__main__":
    sys.exit(main())
