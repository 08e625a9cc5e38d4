"""Ascend's graph mode: torch.compile of naive by the vendor's package torchair, which some builds of torch_npu bring along.

For inference only: so does the vendor document it, and nobody has checked the gradients that it computes.
"""

from __future__ import annotations

import importlib
from functools import cache

import torch

from rdn_fast.rdb import naive


@cache
def missing() -> str | None:
    """Why this row cannot run here. torch_npu, which must be imported before torchair, has been where there is an npu."""
    try:
        importlib.import_module("torchair").get_npu_backend  # noqa: B018  (torch_npu's stand-in for it imports at the first attribute)
    except Exception as error:  # it checks and loads much of its own
        return f"needs the package torchair, whose import fails: {(str(error).strip() or repr(error)).splitlines()[0]}"
    return None


@cache
def _compiled():
    torchair = importlib.import_module("torchair")
    return torch.compile(
        naive.rdb, backend=torchair.get_npu_backend(compiler_config=torchair.CompilerConfig()), dynamic=True
    )


def rdb(x, conv_w, conv_b, fuse_w, fuse_b, *, out=None):
    """x: [B, G0, H, W] -> y: [B, G0, H, W]; `out` is ignored. One graph serves pictures of all sizes."""
    return _compiled()(x, conv_w, conv_b, fuse_w, fuse_b)
