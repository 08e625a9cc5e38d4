"""Errors that a device reports, at whatever call the host next waits for it."""

from __future__ import annotations

# In small letters. torch and NCCL, which then cannot go on, name CUDA's errors; torch_npu names ACL's, by either text.
_TEXTS = "cuda error", "npu function error", "acl stream synchronize failed"
_OF_COLLECTIVES = "EI00"  # CANN's error codes of HCCL, in ACL's errors where a wait for another rank's card fails


def is_device_fault(error: RuntimeError) -> bool:
    """Return whether the error is a fault of this process's device, which no other rank has caused."""
    text = str(error)
    if _OF_COLLECTIVES in text:
        return False
    return type(error).__name__ == "AcceleratorError" or any(word in text.lower() for word in _TEXTS)
