"""`rdn-fast doctor`: one screen about this machine: what is here for training, and what brings the rest.

Nothing is timed or compiled, and each line guards itself: whatever is broken, the others are told.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module, metadata
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table

from rdn_fast import __version__, ascend, native
from rdn_fast.cache import cache_folder
from rdn_fast.config import make_configs
from rdn_fast.errors import UserError, one_line
from rdn_fast.terminal import print_table

# What the drivers' own tools are asked, and where they answer with a version.
_TOOLS = {
    "npu-smi": (("info",), r"Version:\s*(\S+)"),
    "nvidia-smi": (("--query-gpu=driver_version", "--format=csv,noheader"), r"(\S+)"),
}


class Line(NamedTuple):
    """What is here of one thing; `mend`: what is wrong with it and the remedy, "" for nothing."""

    state: str
    mend: str = ""


def doctor(device: str = "auto") -> int:
    """Print the screen, seen from the device that `device` names; returns 0 when training can run there, else 1. UserError for a name of no device."""
    autoload = os.environ.get(ascend.AUTOLOAD)
    os.environ[ascend.AUTOLOAD] = "0"  # torch is to be imported for the other lines, whatever torch_npu does
    with suppress(ImportError, OSError, RuntimeError):  # of a broken torch, which is to be told below
        import_module("rdn_fast.devices").check_name(device)
    checks: dict[str, Callable[[], Line]] = {
        "python": _python,
        "torch": _torch,
        "torch_npu": partial(_torch_npu, autoload == "1"),
        "CANN": lambda: Line(ascend.cann()),
        "drivers": _drivers,
        "devices": _devices,
        "apex": _apex,
        "triton": _triton,
        "h5py": _h5py,
        "C compiler": _compiler,
        "rdb": partial(_rows, device),
        "rdb auto": partial(_auto, device),
        "cache folder": _cache,
        "training": partial(_training, device),
    }
    lines = {name: _guarded(check) for name, check in checks.items()}
    table = Table(title=f"rdn-fast {__version__}", title_justify="left", show_header=False)
    for name, line in lines.items():
        table.add_row(name, escape(line.state))
    print_table(table)
    if mends := list(dict.fromkeys(line.mend for line in lines.values() if line.mend)):
        print("What is not here, and what brings it:")
    for mend in mends:
        print(f"- {', '.join(name for name, line in lines.items() if line.mend == mend)}: {mend}")
    return 1 if lines["training"].mend else 0


def _guarded(check: Callable[[], Line]) -> Line:
    try:
        return check()
    except UserError as error:
        return Line("no", str(error))
    except ModuleNotFoundError as error:
        return Line("no", f"{error}; `pip install rdn-fast` brings what it needs")
    except Exception as error:  # it is here to find what is broken
        return Line("cannot be told", one_line(error))


def _python() -> Line:
    return Line(f"{platform.python_version()}, {sys.executable}, {platform.system()} {platform.machine()}")


def _torch() -> Line:
    import torch

    from rdn_fast import devices

    return Line(
        f"{torch.__version__}, built for {devices.torch_build()}; {torch.get_num_threads()} threads, {devices.cores()} cores"
    )


def _torch_npu(autoload: bool) -> Line:
    if not ascend.installed():
        return Line("not installed", ascend.load())
    if (reason := ascend.load()) is not None:
        every = f"{ascend.AUTOLOAD}=1 makes the other commands fail, too: unset it"
        torchrun = f"a torchrun of your own imports torch, and so torch_npu, before rdn_fast does: export {ascend.AUTOLOAD}=0 for it"
        return Line("does not load", f"{reason}. {every if autoload else torchrun}")
    from rdn_fast import devices

    here = not all(map(devices.is_host, devices.all_devices()))
    return Line(import_module("torch_npu").__version__, "" if here else ascend.no_device())


def _drivers() -> Line:
    tools = [tool for tool in _TOOLS if shutil.which(tool)]
    versions, wrong = [], []
    for tool in tools:
        arguments, pattern = _TOOLS[tool]
        done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=10, check=False)
        version = re.search(pattern, done.stdout)
        versions.append(f"{version[1]} ({tool})" if version and not done.returncode else f"unknown ({tool})")
        if done.returncode:
            wrong.append(
                f"`{tool} {arguments[0]}` ends with {done.returncode}; install the driver, or give the container its devices"
            )
    return Line(", ".join(versions) or f"neither {' nor '.join(_TOOLS)} is here", "; ".join(wrong))


def _devices() -> Line:
    from rdn_fast import devices

    states = []
    for device in devices.all_devices():
        try:
            states.append(f"{devices.describe(device)}, {devices.free_memory(device) / 2**30:.1f} GiB free")
        except RuntimeError as error:  # held by another, or broken
            states.append(f"{device}: {one_line(error)}")
    return Line("\n".join(states))


def _apex() -> Line:
    from rdn_fast.training import apex

    return Line("no", reason) if (reason := apex.missing()) is not None else Line("apex.amp is here")


def _triton() -> Line:
    from rdn_fast.rdb import triton_planes

    return Line("no", reason) if (reason := triton_planes.missing()) is not None else Line(metadata.version("triton"))


def _h5py() -> Line:
    import h5py

    return Line(f"{h5py.__version__}, HDF5 {h5py.version.hdf5_version}")


def _compiler() -> Line:
    return Line(compiler) if (compiler := native.compiler()) else Line("no", native.NO_COMPILER)


def _case(device: str):
    """The case of rdn-b's usual training, in the mode of the device that it would run in."""
    from rdn_fast import devices
    from rdn_fast.commands.tune_modes import cases_of
    from rdn_fast.rdb import autotune

    case, _ = cases_of(*make_configs({"device": device}, "rdn-b"), devices.pick(device))
    return dataclasses.replace(case, mode=autotune.fastest_mode(case))


def _reasons(case) -> dict[str, str | None]:
    """Why each row of the table cannot run the case; a row of C counts as compiled where there is a compiler."""
    from rdn_fast.rdb import IMPLS, refusal

    reasons = {}
    for row in IMPLS.values():
        unbuilt = hasattr(row.module, "SOURCE") and native.compiler()
        reasons[row.name] = refusal(
            dataclasses.replace(row, module=None) if unbuilt else row, case.device, case.dtype, case.training
        )
    return reasons


def _rows(device: str) -> Line:
    reasons = _reasons(_case(device))
    able = ", ".join(name for name, reason in reasons.items() if reason is None)
    return Line(
        "\n".join([f"{able} can run", *(f"{name} {reason}" for name, reason in reasons.items() if reason is not None)])
    )


def _auto(device: str) -> Line:
    from rdn_fast.rdb import autotune

    case = _case(device)
    shape = f"{case.batch} patches of {case.height}x{case.width} in {str(case.dtype).removeprefix('torch.')}" + (
        f", mode {case.mode}" if case.mode else ""
    )
    able = [name for name, reason in _reasons(case).items() if reason is None]
    known = autotune.remembered().get(case.key())
    if known in able:
        return Line(f"{known}: the fastest when {shape} were timed")
    if len(able) == 1:
        return Line(f"{able[0]}: no other can run")
    return Line(f"not timed yet for {shape}: the first run does that, or `rdn-fast tune --device {device}`")


def _cache() -> Line:
    folder = cache_folder()
    files = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    state = f"{folder}, {len(files)} files, {sum(files) / 2**20:.1f} MiB"
    if folder.name == "rdn_fast":
        return Line(state)
    return Line(
        f"{folder}, for this process",
        "it cannot be written, so each run compiles and times anew; set XDG_CACHE_HOME to a folder that can",
    )


def _training(device: str) -> Line:
    import_module("rdn_fast.training.run")
    case = _case(device)
    if None not in _reasons(case).values():
        return Line("cannot run", f"no implementation of the block can run on {case.device}")
    return Line(f"can run on {case.device}")
