"""torch_npu: the environment it is imported in, and what keeps it from being imported or from finding a device, in a line with the remedy.

Whether it can be used is decided by importing it and counting its devices, never by paths or variables. torch is not imported here.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from functools import cache
from importlib import metadata
from importlib.util import find_spec

AUTOLOAD = (
    "TORCH_DEVICE_BACKEND_AUTOLOAD"  # unset or 1: `import torch` itself imports torch_npu, and fails where that fails
)

# Read by torch_npu and CANN; what the user has set stays.
_DEFAULTS = {
    "TASK_QUEUE_ENABLE": "2",  # operators are prepared and launched by two threads, not one
    "CPU_AFFINITY_CONF": "2",  # the threads of a card stay on the cores near it
    "HCCL_WHITELIST_DISABLE": "1",  # no list of the peers that may connect is asked for
    "HCCL_CONNECT_TIMEOUT": "300",  # seconds, torch_npu's advice: CANN's 120 are short for ranks that read and compile first
    "HCCL_EXEC_TIMEOUT": "544",  # seconds, 8 x 68 as the 910 counts: HCCL says which card hangs before the process group's 600 end the run
}

# Names that its files ask for where another torch's have _rebuild_tensor_v2: how a tensor is made, and the format it had on the device.
REBUILD, FORMAT = "torch_npu.utils.storage._rebuild_npu_tensor", "torch_npu.npu._format.Format"

_TORCH_OWN = ("libtorch", "libc10")


def installed() -> bool:
    """Whether the package is there, in whatever state. (A folder without a module is what pip leaves of one.)"""
    spec = find_spec("torch_npu")
    return spec is not None and spec.origin is not None


@cache
def load() -> str | None:
    """Import torch_npu, which gives torch its device. Returns why that cannot be, with the remedy; None when it is done."""
    if not installed():
        return f"torch_npu is not installed; pip install torch-npu=={_release('torch')}, the one for this torch"
    if (mismatch := _mismatch()) is not None:
        return mismatch
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        importlib.import_module("torch_npu")
    except Exception as error:  # it binds and patches so much that it can fail in any way
        return _diagnosis(error)
    return None


def no_device() -> str:
    """What to say when torch_npu is imported and counts no device."""
    chosen = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    hidden = (
        ""
        if chosen is None
        else f"; ASCEND_RT_VISIBLE_DEVICES={chosen} must name devices that it lists, in ascending order"
    )
    flags = "--device /dev/davinci0 --device /dev/davinci_manager --device /dev/devmm_svm --device /dev/hisi_hdc"
    return f"torch_npu finds no device; `npu-smi info` must list one; a container needs {flags}{hidden}"


def autoload_failure(error: RuntimeError) -> str | None:
    """What to say of an `import torch` that failed because it imports torch_npu itself; None for any other error."""
    if AUTOLOAD not in str(error):
        return None
    return f"{AUTOLOAD}=1 makes `import torch` fail: {_diagnosis(error.__cause__ or error)}; or unset it, and rdn-fast asks for torch_npu when it needs it"


def cann() -> str:
    """CANN's version as torch_npu tells it, or where its environment says that it is; for people to read."""
    home = os.environ.get("ASCEND_TOOLKIT_HOME")
    place = f"in {home} (ASCEND_TOOLKIT_HOME)" if home else "not seen (ASCEND_TOOLKIT_HOME is not set)"
    version = getattr(sys.modules.get("torch_npu.npu.utils"), "get_cann_version", None)
    return f"{version() or 'unknown version'}, {place}" if version else place


def _mismatch() -> str | None:
    """torch_npu is made for one torch; with another it may not even fail in order."""
    try:
        made_for, there = _release("torch_npu"), _release("torch")
    except metadata.PackageNotFoundError:  # built in place
        return None
    remedy = f"pip install torch-npu=={there}, or torch=={made_for}"
    return (
        None
        if made_for == there
        else f"torch_npu {metadata.version('torch_npu')} does not go with torch {metadata.version('torch')}; {remedy}"
    )


def _release(package: str) -> str:
    """The numbers of its version, without what follows them."""
    return re.match(r"\d+\.\d+\.\d+|", metadata.version(package))[0]


def _diagnosis(error: BaseException) -> str:
    text = str(error).strip() or repr(error)
    library = re.search(r"(lib[^\s/:]+\.so[^\s/:]*): cannot open shared object file", text)
    if library is None or library[1].startswith(_TORCH_OWN):
        return f"importing torch_npu fails: {text.splitlines()[0]}; `python -c 'import torch_npu'` shows where"
    if library[1].startswith("libascend_hal"):
        where = "install it on the host, mount /usr/local/Ascend/driver into the container; `npu-smi info` must work"
        return f"the Ascend driver is missing ({library[1]} cannot be loaded); {where}"
    return f"CANN is missing ({library[1]} cannot be loaded); install it, then source /usr/local/Ascend/ascend-toolkit/set_env.sh"
