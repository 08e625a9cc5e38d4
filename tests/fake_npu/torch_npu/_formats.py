"""Memory formats: here a tensor has no other than the plain one, and a cast only checks what it is given."""

from __future__ import annotations

import warnings

import torch

from torch_npu.npu import config

_BASE = {0: "NCHW", 2: "ND"}
_PRIVATE = {3: "NC1HWC0", 4: "FRACTAL_Z"}


def npu_format_cast(tensor: torch.Tensor, acl_format: int) -> torch.Tensor:
    """The tensor in the format of that number: a copy of the same values."""
    if tensor.device.type != "npu":
        raise RuntimeError(f"npu_format_cast: the tensor is on {tensor.device}, not on an npu")
    if acl_format not in _BASE | _PRIVATE:
        raise RuntimeError(f"npu_format_cast: {acl_format} is no known format")
    if acl_format in _PRIVATE and tensor.dim() != 4:
        raise RuntimeError(
            f"npu_format_cast: {_PRIVATE[acl_format]} is a format of 4-dimensional tensors, "
            f"not of {tuple(tensor.shape)}"
        )
    if acl_format in _PRIVATE and not config.allow_internal_format:
        warnings.warn(
            "npu_format_cast: torch.npu.config.allow_internal_format is False, the tensor keeps its format",
            stacklevel=2,
        )
    return tensor.clone()


# The device's convolution under its own name: the same as torch's.
_operators = torch.library.Library("npu", "DEF")
_operators.define(
    "npu_convolution(Tensor input, Tensor weight, Tensor? bias, "
    "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups) -> Tensor"
)


def _npu_convolution(input, weight, bias, stride, padding, dilation, groups):
    return torch.convolution(input, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)


_operators.impl("npu_convolution", _npu_convolution, "CompositeImplicitAutograd")
