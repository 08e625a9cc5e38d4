"""A stand-in for Ascend's torch_npu: importing it gives torch a device named `npu` that computes on the host.

It serves tests, and is never faster than the CPU nor different from it in numbers. It has the names of torch_npu that are known to be right,
and no others, and it is at least as strict as the real device:
- channels_last is rejected, float64 becomes float32 with a warning, tensors of two devices do not mix;
- fresh memory holds NaN, and FAKE_NPU_MEMORY bytes (32 GiB) are all there is on each of FAKE_NPU_DEVICES (2) devices;
- copies between the device and pinned memory that do not block happen when they are waited for, and the host sees their results
  when it has waited. Work that is not made to wait for other streams' work on the same memory gives NaN, and a warning.

csrc/ is the device, simulated_npu.py compiles it. Collectives run when they are asked for: a forgotten work.wait() goes unseen.
"""

import torch
from simulated_npu import CannotSimulate, library

from torch_npu import _hccl, _lists, npu, optim, profiler
from torch_npu._formats import npu_format_cast

__version__ = "2.13.0+simulated"
__all__ = ["npu", "npu_format_cast", "optim", "profiler"]

if torch._C._get_privateuse1_backend_name() != "privateuseone":
    raise ImportError(
        f"torch already has the device {torch._C._get_privateuse1_backend_name()}: the simulated npu cannot stand beside it"
    )
try:
    torch.ops.load_library(library())
except CannotSimulate as error:
    raise ImportError(str(error)) from None

torch.utils.rename_privateuse1_backend("npu")
torch._register_device_module("npu", npu)
torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
_hccl.register()
_lists.register()
