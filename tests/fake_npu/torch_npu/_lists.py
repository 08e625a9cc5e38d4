"""Multi-tensor (_foreach) operations: the real device refuses them for private formats, this one where these are on."""

from __future__ import annotations

import torch

from torch_npu import npu

_ONE_BY_ONE = {
    "_foreach_copy_": lambda tensors, others, non_blocking=False: [
        a.copy_(b, non_blocking) for a, b in zip(tensors, others, strict=True)
    ],
    "_foreach_add_.List": lambda tensors, others, alpha=1: [
        a.add_(b, alpha=alpha) for a, b in zip(tensors, others, strict=True)
    ],
    "_foreach_lerp_.Scalar": lambda tensors, others, weight: [
        a.lerp_(b, weight) for a, b in zip(tensors, others, strict=True)
    ],
    "_foreach_norm.Scalar": lambda tensors, order=2, dtype=None: [
        torch.linalg.vector_norm(a, order, dtype=dtype) for a in tensors
    ],
}
_library = torch.library.Library("aten", "IMPL")


def _operation(name: str, one_by_one):
    def operation(*arguments, **options):
        if npu.config.allow_internal_format:
            raise RuntimeError(f"{name.partition('.')[0]} does not support internal formats")
        results = one_by_one(*arguments, **options)
        return results if "norm" in name else None

    return operation


def register() -> None:
    for name, one_by_one in _ONE_BY_ONE.items():
        _library.impl(name, _operation(name, one_by_one), "PrivateUse1")
