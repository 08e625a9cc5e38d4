"""torch.compile of naive. Offered on CUDA, where `auto` times it; on CPUs it has only been seen to lose (profiling/LOG.md)."""

from __future__ import annotations

from functools import cache

import torch

from rdn_fast.rdb import naive


@cache
def _compiled():
    return torch.compile(naive.rdb, dynamic=False)


def rdb(x, conv_w, conv_b, fuse_w, fuse_b, *, out=None):
    """x: [B, G0, H, W] -> y: [B, G0, H, W]; `out` is ignored."""
    return _compiled()(x, conv_w, conv_b, fuse_w, fuse_b)
