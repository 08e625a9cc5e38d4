"""torch_npu.npu.utils."""

from __future__ import annotations

import os


def is_support_inf_nan() -> bool:
    """Return whether overflow produces inf. FAKE_NPU_SATURATES=1 simulates a device that saturates instead."""
    return os.environ.get("FAKE_NPU_SATURATES") != "1"
