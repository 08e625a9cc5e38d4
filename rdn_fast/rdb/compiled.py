"""torch.compile of naive, for CUDA. On CPUs it has always been slower than the other impls (profiling/LOG.md)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rdn_fast.rdb import naive

functions: dict[bool, Callable] = {}  # dynamic shapes or not: the compiled block; functions.clear() forgets both


def rdb(x, conv_w, conv_b, fuse_w, fuse_b):
    """x: [B, G0, H, W] -> y: [B, G0, H, W]. Training compiles once per shape, inference once for all picture sizes."""
    dynamic = not torch.is_grad_enabled()
    if dynamic not in functions:
        functions[dynamic] = torch.compile(naive.rdb, dynamic=dynamic)
    return functions[dynamic](x, conv_w, conv_b, fuse_w, fuse_b)
