"""Optimizers, gradient scalers, overflow detection and multi-tensor operations as each device needs them."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from functools import cache

import torch


def adam(
    parameters,
    device: torch.device,
    lr: float,
    weight_decay: float,
    captured: bool = False,
    by_apex: bool = False,
) -> torch.optim.Optimizer:
    """Return an Adam that updates all parameters in one fused pass.

    captured: its steps run inside CudaGraphed. by_apex: apex.amp unscales the gradients.
    """
    if device.type == "npu" and by_apex:  # apex replaces gradients; NpuFusedAdam would go on reading the old ones
        return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, foreach=False)
    if device.type == "npu":
        return importlib.import_module("torch_npu").optim.NpuFusedAdam(parameters, lr=lr, weight_decay=weight_decay)
    captured = captured and device.type == "cuda"
    if captured:  # torch would warn about the first, eager steps
        warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
    lr = _rate(lr, device)
    kind = _CpuAdam if device.type == "cpu" else torch.optim.Adam
    return kind(parameters, lr=lr, weight_decay=weight_decay, fused=True, capturable=captured)


class _CpuAdam(torch.optim.Adam):
    """torch.optim.Adam whose fused CPU kernel does not copy gradients that are channels_last.

    The kernel goes through memory in order, but calls contiguous() on each gradient, whose result it does not use.
    Here it gets views whose dimensions are in memory order, of which contiguous() makes no copy.
    """

    def _init_group(self, group, *lists):
        complex_ones = super()._init_group(group, *lists)
        *lists, _ = lists  # parameters, gradients, three lists of state; the last holds the counts of steps
        for tensors in lists:
            tensors[:] = map(_in_memory_order, tensors)
        return complex_ones


def _in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.permute(0, 2, 3, 1) if last else tensor


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float, device: torch.device) -> None:
    """Set the learning rate of the next steps, also of those that a captured graph replays."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor) and group["lr"].device == device:
            group["lr"].fill_(rate)
        else:
            group["lr"] = _rate(rate, device)


def _rate(rate: float, device: torch.device):
    return torch.tensor(rate, device=device) if device.type == "cuda" else rate


def static_scaler(device: torch.device, scale: float) -> torch.amp.GradScaler:
    """Return a gradient scaler with a constant scale, for optimizers without `found_inf`. Gradients must be finite."""
    if device.type == "npu":  # a dynamic one fails with NpuFusedAdam
        # It has no float64 for the reciprocal and warns; the reciprocal of a power of two is exact in float32.
        warnings.filterwarnings("ignore", module=r"torch(_npu\.npu)?\.amp\.grad_scaler")
        scaler = torch.get_device_module(device).amp.GradScaler
        return scaler(init_scale=scale, dynamic=False, enabled=scale != 1)
    return torch.amp.GradScaler(device.type, init_scale=scale, growth_interval=2**31 - 1, enabled=scale != 1)


def clear_overflow(device: torch.device) -> None:
    """Clear the device's overflow flag, where it has one."""
    if _saturates(device):
        torch.get_device_module(device).amp.GradScaler.clear_npu_overflow_flag()


def overflowed(device: torch.device) -> bool:
    """Return whether a result overflowed since clear_overflow(). Always False on devices that produce inf instead."""
    return _saturates(device) and torch.get_device_module(device).amp.GradScaler.get_npu_overflow_flag()


def overflowed_on_any_rank(device: torch.device) -> torch.Tensor | bool:
    """Return overflowed() of any rank, as bool [] on the device; False where overflow produces inf. A collective."""
    if not _saturates(device):
        return False
    flag = torch.full((), int(overflowed(device)), dtype=torch.int32, device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return flag.bool()


@cache
def _saturates(device: torch.device) -> bool:
    """Return whether overflow saturates and sets a flag (Ascend 910 in its older mode) instead of producing inf."""
    return device.type == "npu" and not torch.get_device_module(device).utils.is_support_inf_nan()


def supports_foreach(device: torch.device) -> bool:
    """Return whether multi-tensor (_foreach) operations work; torch_npu refuses them for private formats."""
    return device.type != "npu"


def foreach(operation: str, tensors: Sequence[torch.Tensor], others: Sequence[torch.Tensor], *arguments) -> None:
    """Call tensor.operation_(other, *arguments) for each pair, in one launch where the device supports it."""
    if supports_foreach(tensors[0].device):
        getattr(torch, f"_foreach_{operation}_")(tensors, others, *arguments)
    else:
        for tensor, other in zip(tensors, others, strict=True):
            getattr(tensor, f"{operation}_")(other, *arguments)


def gradients_stay(device: torch.device) -> bool:
    """Return whether gradients must stay in their own memory: NpuFusedAdam takes no views of a larger buffer."""
    return device.type == "npu"


def begin_mean(values: torch.Tensor, world: int) -> torch.distributed.Work:
    """Begin to replace `values` by their mean over all ranks, after what is queued. A collective.

    wait() of the result makes the device's queue wait, on a CPU the caller.
    """
    if values.device.type == "cuda":  # NCCL divides as it sums
        return torch.distributed.all_reduce(values, torch.distributed.ReduceOp.AVG, async_op=True)
    return torch.distributed.all_reduce(values.div_(world), async_op=True)
