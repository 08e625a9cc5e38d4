"""torch.compile of naive. Offered on CUDA, where `auto` times it; on CPUs it has only been seen to lose (profiling/LOG.md)."""

from __future__ import annotations

from functools import cache

import torch

from rdn_fast.rdb import naive


@cache
def _compiled(dynamic: bool):
    return torch.compile(naive.rdb, dynamic=dynamic)


def rdb(x, conv_w, conv_b, fuse_w, fuse_b, *, out=None):
    """x: [B, G0, H, W] -> y: [B, G0, H, W]; `out` is ignored. Training compiles for one shape, inference once for all pictures."""
    return _compiled(dynamic=not torch.is_grad_enabled())(x, conv_w, conv_b, fuse_w, fuse_b)
