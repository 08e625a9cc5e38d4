"""torch_npu.npu.utils."""

from __future__ import annotations

import os


def is_support_inf_nan() -> bool:
    """Whether results that are too large become inf. FAKE_NPU_SATURATES=1 is a device where they stop at the largest number: so it says."""
    return os.environ.get("FAKE_NPU_SATURATES") != "1"
