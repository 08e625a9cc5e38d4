"""torch.compile of naive, for CUDA. On CPUs it has always been slower than the other impls (profiling/LOG.md)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rdn_fast.rdb import naive

# Graphs of the block in a process: each shape that is trained, each model. From torch's 8 on it would compute eagerly.
GRAPHS = 64

functions: dict[bool, Callable] = {}  # dynamic shapes or not: the compiled block; functions.clear() forgets both


def rdb(x, conv_w, conv_b, fuse_w, fuse_b):
    """x: [B, G0, H, W] -> y: [B, G0, H, W]. Training compiles once per shape, inference once for all picture sizes."""
    dynamic = not torch.is_grad_enabled()
    if dynamic not in functions:
        functions[dynamic] = compile_block(dynamic=dynamic)
    return functions[dynamic](x, conv_w, conv_b, fuse_w, fuse_b)


def compile_block(**options) -> Callable:
    """Return torch.compile(naive.rdb, **options), which makes up to GRAPHS graphs; torch warns when there are more."""
    config = torch._dynamo.config
    config.recompile_limit = max(GRAPHS, config.recompile_limit)
    return torch.compile(naive.rdb, **options)
