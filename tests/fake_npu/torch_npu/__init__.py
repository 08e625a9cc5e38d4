"""A stand-in for Ascend's torch_npu: importing it gives torch a device named `npu` that computes on the host.

It serves tests. Its numbers are the CPU's. It has only those names of torch_npu that are known to be right, and it is
at least as strict as the real device:
- It rejects channels_last, turns float64 into float32 with a warning, and does not mix tensors of two devices.
- Fresh memory holds NaN. Each of FAKE_NPU_DEVICES (2) devices has FAKE_NPU_MEMORY bytes (32 GiB).
- Non-blocking copies between the device and pinned memory happen when something waits for them. Work that does not
  wait for another stream's work on the same memory gets NaN, and a warning.

csrc/ is the device; simulated_npu.py compiles it. Collectives run at once: a missing work.wait() goes unnoticed.
"""

import torch
from simulated_npu import CannotSimulate, library

from torch_npu import _hccl, _lists, npu, optim, profiler
from torch_npu._formats import npu_format_cast

__version__ = "2.13.0+simulated"
__all__ = ["npu", "npu_format_cast", "optim", "profiler"]

if torch._C._get_privateuse1_backend_name() != "privateuseone":
    raise ImportError(
        f"torch already has the device {torch._C._get_privateuse1_backend_name()}: "
        "the simulated npu cannot stand beside it"
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
