"""A block's parameters as a module: RDB, and FrozenRDB, whose weights never change and are packed once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from rdn_fast import devices
from rdn_fast.rdb import Impl


class _DenseLayer(nn.Module):
    def __init__(self, channels_in: int, growth_rate: int):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, growth_rate, 3, padding=1)


class RDB(nn.Module):
    """One block's parameters; forward computes it with an impl of rdb.IMPLS."""

    def __init__(self, g0: int, g: int, num_layers: int):
        super().__init__()
        self.layers = nn.Sequential(*(_DenseLayer(g0 + j * g, g) for j in range(num_layers)))
        self.lff = nn.Conv2d(g0 + num_layers * g, g0, 1)

    @property
    def weights(self) -> tuple[list, nn.Parameter]:
        """conv_w and fuse_w."""
        return [layer.conv.weight for layer in self.layers], self.lff.weight

    @property
    def tensors(self) -> list[nn.Parameter]:
        """Weight and bias of each layer in turn, then of the fusion."""
        convs = (*(layer.conv for layer in self.layers), self.lff)
        return [p for conv in convs for p in (conv.weight, conv.bias)]

    def forward(self, x, impl: Impl, packed=None):
        """packed: what impl.pack() returns for this block."""
        tensors = self.tensors
        if packed is None and x.dtype != tensors[0].dtype:
            tensors = _Cast.apply(x.dtype, *tensors)
        return impl.rdb(x, *_arguments(tensors), packed)


class FrozenRDB(nn.Module):
    """An RDB for inference: its weights are cast and packed once for each impl and dtype.

    They are no parameters and in no state dict: neither an optimizer nor load_state_dict can change them unseen.
    """

    def __init__(self, block: RDB):
        super().__init__()
        self._tensors = [tensor.detach().clone() for tensor in block.tensors]
        self._ready: dict[tuple, Callable] = {}  # (impl's name, dtype): the block as a function of x

    def _apply(self, fn, recurse=True):  # what .to(), .float() and the like call
        self._tensors, self._ready = [fn(tensor) for tensor in self._tensors], {}
        return super()._apply(fn, recurse)

    def forward(self, x, impl: Impl, packed=None):
        if x.requires_grad:
            raise RuntimeError("a frozen model computes no gradients; take the model that it was made from")
        key = impl.name, x.dtype
        if key not in self._ready:
            self._ready[key] = impl.frozen(*_arguments([tensor.to(x.dtype) for tensor in self._tensors]))
        return self._ready[key](x)


def _arguments(tensors) -> tuple:
    """Return conv_w, conv_b, fuse_w and fuse_b of tensors in the order of RDB.tensors."""
    return tensors[0:-2:2], tensors[1:-2:2], tensors[-2], tensors[-1]


class _Cast(torch.autograd.Function):
    """Cast all tensors in one launch, and their gradients back in another."""

    @staticmethod
    def forward(ctx, dtype, *tensors):
        ctx.dtype = tensors[0].dtype
        return _Cast._cast(dtype, tensors)

    @staticmethod
    def backward(ctx, *gradients):
        return None, *_Cast._cast(ctx.dtype, gradients)

    @staticmethod
    def _cast(dtype, tensors):
        cast = [torch.empty_like(t, dtype=dtype) for t in tensors]
        devices.foreach("copy", cast, tensors)
        return tuple(cast)
