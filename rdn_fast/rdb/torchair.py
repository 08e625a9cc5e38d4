"""Ascend's graph mode: torch.compile of naive with the vendor's package torchair, which some torch_npu builds include.

For inference only: the vendor documents nothing else, and the gradients of the graphs are unverified.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cached_property

from rdn_fast.errors import what_failed
from rdn_fast.rdb.compiled import compile_block


class Package:
    """The package torchair, imported at first use, and the block compiled with it."""

    @cached_property
    def missing(self) -> str | None:
        """Return why torchair cannot be imported, or None. devices/ has imported torch_npu, which it needs, by then."""
        try:
            # torch_npu's lazy placeholder for torchair imports the package at the first attribute.
            importlib.import_module("torchair").get_npu_backend  # noqa: B018
        except Exception as error:  # it checks and loads much of its own
            return f"needs the package torchair, whose import fails: {what_failed(error)}"
        return None

    @cached_property
    def compiled(self) -> Callable:
        """The block as a graph with dynamic shapes."""
        torchair = importlib.import_module("torchair")
        backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
        return compile_block(backend=backend, dynamic=True)

    def clear(self) -> None:
        """Forget both; the next use imports and compiles again."""
        vars(self).clear()


package = Package()


def missing() -> str | None:
    """Return why this impl cannot run here, or None when it can."""
    return package.missing


def rdb(x, conv_w, conv_b, fuse_w, fuse_b):
    """x: [B, G0, H, W] -> y: [B, G0, H, W]. One graph serves all picture sizes."""
    return package.compiled(x, conv_w, conv_b, fuse_w, fuse_b)
