"""Processes that are forked compute in one thread, so that they wait for no thread of their parent."""

from __future__ import annotations

import os

import torch


def _one_thread() -> None:
    """Compute in one thread from now on.

    A forked child has only the thread that forked. The threads in which OpenMP's runtime (libgomp, under torch's own
    operations and our C files) computed in the parent are gone, and a parallel region would wait for them for ever.
    Regions of one thread need none of them.
    """
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # Windows forks nothing
    os.register_at_fork(after_in_child=_one_thread)
