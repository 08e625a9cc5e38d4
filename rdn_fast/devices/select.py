"""Which devices this machine has, and which one a name stands for."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from pathlib import Path

import torch

from rdn_fast import ascend
from rdn_fast.errors import UserError
from rdn_fast.terminal import print_line

_BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}


def count(kind: str) -> int:
    """Return how many ranks this machine can serve on devices of this kind: accelerators, or usable cores for `cpu`."""
    if kind == "cpu":
        return cores()
    if kind == "npu" and ascend.load() is not None:
        return 0
    module = torch.get_device_module(kind)
    return module.device_count() if module.is_available() else 0


def cores() -> int:
    """Return how many of the host's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def inventory(kind: str) -> str:
    """Return in words what this machine can serve ranks with: `2 cuda devices`."""
    number = count(kind)
    plural = "s" * (number > 1)
    return f"{number} CPU core{plural} and no accelerator" if kind == "cpu" else f"{number} {kind} device{plural}"


def all_devices() -> list[torch.device]:
    """Return every device of this machine, the CPU last."""
    return [*(torch.device(kind, i) for kind in ("npu", "cuda") for i in range(count(kind))), torch.device("cpu")]


def torch_build() -> str:
    """Return in words what this torch can compute on without its extensions."""
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"


def check_name(name: str) -> None:
    """Raise UserError when `name` is not a device name on any machine."""
    if re.fullmatch(r"cpu:.*", str(name)):
        raise UserError(f"--device {name}: a CPU has no index; --device cpu")
    if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|(cuda|npu)(:\d+)?", name):
        raise UserError(f"--device {name}: choose auto, cpu, cuda[:i] or npu[:i], i being a number")


def resolve(name: str) -> str:
    """Return the kind of device (cpu, cuda, npu) that `auto`, `cpu`, `cuda[:i]` or `npu[:i]` means on this machine.

    Raises UserError when there is none of that kind.
    """
    check_name(name)
    kind = name.partition(":")[0]
    if kind == "auto":
        kind = next((k for k in ("npu", "cuda") if count(k)), "cpu")
        if kind != "npu" and ascend.installed():
            _note(f"--device auto takes {kind}: {_why_missing('npu')}")
        return kind
    if kind != "cpu" and not count(kind):
        raise UserError(f"--device {name}: {_why_missing(kind)}; --device cpu works everywhere")
    return kind


def check_shared(name: str, device_id: int | None) -> None:
    """Raise UserError when one device index is given for several ranks: each rank takes the index of its local rank."""
    if ":" in name or device_id is not None:
        flag = f"--device {name}" if ":" in name else f"--device-id {device_id}"
        raise UserError(f"{flag}: with several ranks each takes the device of its own number; give no index")


def pick(name: str = "auto", device_id: int | None = None, local_rank: int | None = None) -> torch.device:
    """Return the device to compute on, and make it current.

    The index comes from the name (`cuda:1`), else from `device_id`, else from `local_rank` (one of several ranks on
    this machine), else from ASCEND_DEVICE_ID (npu only), else it is 0. Raises UserError if that device does not exist.
    """
    kind = resolve(name)
    if kind == "cpu":
        return torch.device("cpu")
    source, index = _index(kind, name, device_id, local_rank)
    if not 0 <= index < count(kind):
        there = f"this machine has {inventory(kind)}, counted from {kind}:0"
        raise UserError(f"{source}: there is no {kind}:{index}; {there}")
    device = torch.device(kind, index)
    make_current(device)
    return device


def _index(kind: str, name: str, device_id: int | None, local_rank: int | None) -> tuple[str, int]:
    """Return where the index comes from, in words, and the index."""
    _, colon, index = name.partition(":")
    if local_rank is not None:
        check_shared(name, device_id)
        return f"local rank {local_rank}", local_rank
    if colon:
        return f"--device {name}", int(index)
    if device_id is not None:
        return f"--device-id {device_id}", device_id
    if kind == "npu" and (variable := os.environ.get("ASCEND_DEVICE_ID")):
        source = f"ASCEND_DEVICE_ID={variable}"
        if not variable.isdecimal():
            raise UserError(f"{source}: must be the number of a device; set it to 0 or unset it")
        return source, int(variable)
    return f"--device {name}", 0


def make_current(device: torch.device) -> None:
    """Make an accelerator the current device, which libraries such as Triton launch on."""
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index or 0)


def current_gpu() -> torch.device | None:
    """Return the CUDA GPU that is current in this process; None where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if count("cuda") else None


def is_current_gpu(device: torch.device) -> bool:
    """Return whether the device is current_gpu(). For others no driver is asked, which would open a context there."""
    return device.type == "cuda" and device == current_gpu()


def is_host(device: torch.device) -> bool:
    """Return whether the device computes in host memory."""
    return device.type == "cpu"


def process_group_backend(device: torch.device) -> str:
    """Return the name of torch.distributed's backend for gradients on this device."""
    return _BACKENDS[device.type]


def describe(device: torch.device) -> str:
    """Return a name for logs and result rows, with the processor's or the card's name."""
    return f"{device} ({hardware(device)})"


def hardware(device: torch.device) -> str:
    """Return the name of the processor, with its threads and instructions, or of the card, whatever its index."""
    if device.type == "cpu":
        return f"{_cpu_name()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return torch.get_device_module(device).get_device_name(device)


@cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


@cache
def _note(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print_line(f"note: {line}")


def _why_missing(kind: str) -> str:
    if kind == "npu":
        return ascend.load() or ascend.no_device()
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    return "no CUDA GPU is visible here (nvidia-smi shows what the driver sees)"
