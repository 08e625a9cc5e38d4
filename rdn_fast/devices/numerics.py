"""What each device computes in: dtypes, memory formats, and float32 that really is float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def low_precision(device: torch.device) -> torch.dtype:
    """Return the default dtype of O1 and O2.

    CPUs take bf16: their fp16 convolutions are 20 to 30 times slower than float32.
    """
    return torch.bfloat16 if device.type == "cpu" else torch.float16


def has_instructions(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the device computes in the low-precision dtype by itself.

    Accelerators do. CPUs have bf16 (AVX512-BF16, AMX-BF16, Arm's BF16) or emulate it; their fp16 counts as emulated.
    """
    if device.type != "cpu":
        return True
    return dtype == torch.bfloat16 and any(map(_capabilities().get, ("avx512_bf16", "amx_bf16", "bf16")))


def has_matrix_tiles() -> bool:
    """Return whether this host's processor multiplies bf16 matrices in tiles (AMX)."""
    return bool(_capabilities().get("amx_bf16"))


def _capabilities() -> dict[str, bool]:
    return getattr(torch.cpu, "get_capabilities", dict)()  # older torch cannot tell


def memory_format(device: torch.device) -> torch.memory_format:
    """Return channels_last where convolutions are fastest in it; torch_npu rejects it."""
    return torch.contiguous_format if device.type == "npu" else torch.channels_last


def enable_autotuning(device: torch.device) -> None:
    """Let cuDNN time its kernels for each new shape. Pays off when the same shapes repeat."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Compute float32 as float32 in the block: no TF32 (CUDA), no HF32 (Ascend), no cuDNN autotuning per image size."""
    switches = []
    if device.type == "cuda":
        switches = [(torch.backends.cudnn, "allow_tf32"), (torch.backends.cudnn, "benchmark")]
    elif device.type == "npu":
        switches = [(torch.npu.conv, "allow_hf32")]
    before = [getattr(*switch) for switch in switches]
    try:
        for switch in switches:
            setattr(*switch, False)
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            setattr(*switch, value)
