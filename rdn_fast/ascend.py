"""Import torch_npu in the environment it needs, and diagnose why it cannot be imported or finds no device.

Whether it can be used is decided by importing it and counting its devices, never by paths or variables. A diagnosis is
one line with the remedy. This module does not import torch.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from functools import cache
from importlib import metadata
from importlib.util import find_spec

# Unset or 1: `import torch` itself imports torch_npu, and fails where that fails.
AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"

# Environment variables that torch_npu and CANN read. Those that the user has set are kept.
_DEFAULTS = {
    "TASK_QUEUE_ENABLE": "2",  # prepare and launch operators in two threads, not one
    "CPU_AFFINITY_CONF": "2",  # keep the threads of a card on the cores near it
    "HCCL_WHITELIST_DISABLE": "1",  # require no list of the peers that may connect
    # Seconds. torch_npu recommends 300: CANN's 120 are short for ranks that first read files and compile.
    "HCCL_CONNECT_TIMEOUT": "300",
    # Seconds, in the 910's unit of 68. Below the process group's 600, so that HCCL can report which card hangs.
    "HCCL_EXEC_TIMEOUT": "544",
}

# Names in the pickles of torch_npu's checkpoints: its _rebuild_tensor_v2, and the format of a tensor on the device.
REBUILD, FORMAT = "torch_npu.utils.storage._rebuild_npu_tensor", "torch_npu.npu._format.Format"

_TORCH_OWN = ("libtorch", "libc10")


def installed() -> bool:
    """Return whether the package is there, in whatever state. A folder without a module is a leftover of pip."""
    spec = find_spec("torch_npu")
    return spec is not None and spec.origin is not None


@cache
def load() -> str | None:
    """Import torch_npu, which gives torch its device. Return None, or why that fails, with the remedy."""
    if not installed():
        return f"torch_npu is not installed; pip install torch-npu=={_release('torch')}, the one for this torch"
    if (mismatch := _mismatch()) is not None:
        return mismatch
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        importlib.import_module("torch_npu")
    except Exception as error:  # it patches so much of torch that it can fail in any way
        return _diagnosis(error)
    return None


def no_device() -> str:
    """Return the message for a torch_npu that was imported and counts no device."""
    chosen = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    flags = "--device /dev/davinci0 --device /dev/davinci_manager --device /dev/devmm_svm --device /dev/hisi_hdc"
    message = f"torch_npu finds no device; `npu-smi info` must list one; a container needs {flags}"
    if chosen is not None:
        message += f"; ASCEND_RT_VISIBLE_DEVICES={chosen} must name devices that it lists, in ascending order"
    return message


def autoload_failure(error: RuntimeError) -> str | None:
    """Return the message for an `import torch` that failed on importing torch_npu; None for any other error."""
    if AUTOLOAD not in str(error):
        return None
    return (
        f"{AUTOLOAD}=1 makes `import torch` fail: {_diagnosis(error.__cause__ or error)}; "
        "or unset it, and rdn-fast asks for torch_npu when it needs it"
    )


def cann() -> str:
    """Return CANN's version in words, as torch_npu tells it, and its folder, as the environment tells it."""
    home = os.environ.get("ASCEND_TOOLKIT_HOME")
    place = f"in {home} (ASCEND_TOOLKIT_HOME)" if home else "not seen (ASCEND_TOOLKIT_HOME is not set)"
    version = getattr(sys.modules.get("torch_npu.npu.utils"), "get_cann_version", None)
    return f"{version() or 'unknown version'}, {place}" if version else place


def _mismatch() -> str | None:
    """Return why this torch_npu does not fit this torch. It is built for one, and may crash with another."""
    try:
        made_for, there = _release("torch_npu"), _release("torch")
    except metadata.PackageNotFoundError:  # built in place
        return None
    if made_for == there:
        return None
    remedy = f"pip install torch-npu=={there}, or torch=={made_for}"
    return f"torch_npu {metadata.version('torch_npu')} does not go with torch {metadata.version('torch')}; {remedy}"


def _release(package: str) -> str:
    """Return its version as x.y.z, without suffixes."""
    return re.match(r"\d+\.\d+\.\d+|", metadata.version(package))[0]


def _diagnosis(error: BaseException) -> str:
    text = str(error).strip() or repr(error)
    library = re.search(r"(lib[^\s/:]+\.so[^\s/:]*): cannot open shared object file", text)
    if library is None or library[1].startswith(_TORCH_OWN):
        return f"importing torch_npu fails: {text.splitlines()[0]}; `python -c 'import torch_npu'` shows where"
    if library[1].startswith("libascend_hal"):
        where = "install it on the host, mount /usr/local/Ascend/driver into the container; `npu-smi info` must work"
        return f"the Ascend driver is missing ({library[1]} cannot be loaded); {where}"
    remedy = "install it, then source /usr/local/Ascend/ascend-toolkit/set_env.sh"
    return f"CANN is missing ({library[1]} cannot be loaded); {remedy}"
