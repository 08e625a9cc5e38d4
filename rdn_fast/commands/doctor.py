"""`rdn-fast doctor`: one screen about what this machine has for training, and how to get the rest.

Nothing is timed, and nothing compiled but for the trial of fused kernels that a card has not run before. Each check
catches its own errors, so a broken part does not hide the others.
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
from importlib import import_module, metadata, resources
from types import SimpleNamespace
from typing import NamedTuple

from rich.table import Table

from rdn_fast import __version__, ascend, native
from rdn_fast.cache import cache_folder
from rdn_fast.config import make_configs
from rdn_fast.errors import UserError, one_line
from rdn_fast.terminal import bytes_in_words, cell, print_line, print_table

# The drivers' own tools: their arguments, and where their output has the version.
_TOOLS = {
    "npu-smi": (("info",), r"Version:\s*(\S+)"),
    "nvidia-smi": (("--query-gpu=driver_version", "--format=csv,noheader"), r"(\S+)"),
}


class Line(NamedTuple):
    """A line of the table. `remedy`: what is wrong and how to mend it; "" when nothing is."""

    state: str
    remedy: str = ""


def doctor(device: str = "auto", ascend_report: str | None = None) -> int:
    """Print the table for training on `device`. Return 0 when training can run there, else 1.

    With `ascend_report` write that report instead (ascend_report.py).
    Raises UserError when `device` is not a device name on any machine.
    """
    autoload = os.environ.get(ascend.AUTOLOAD) == "1"
    os.environ[ascend.AUTOLOAD] = "0"  # a torch_npu that fails must not keep torch from being imported
    if ascend_report is not None:
        return import_module("rdn_fast.commands.ascend_report").ascend_report(ascend_report, device, autoload)
    with suppress(ImportError, OSError, RuntimeError):  # a broken torch is reported by its own check
        import_module("rdn_fast.devices").check_name(device)
    checks = machine_checks(autoload) | {
        "opt-level": partial(_level, device),
        "rdb": partial(_impls, device),
        "rdb auto": partial(_auto, device),
        "cache folder": _cache,
        "training": partial(_training, device),
    }
    lines = {name: run_check(check) for name, check in checks.items()}
    table = Table(title=f"rdn-fast {__version__}", title_justify="left", show_header=False)
    for name, line in lines.items():
        table.add_row(name, "\n".join(map(cell, line.state.split("\n"))))
    print_table(table)
    if remedies := list(dict.fromkeys(line.remedy for line in lines.values() if line.remedy)):
        print_line("What is not here, and what brings it:")
    for remedy in remedies:
        print_line(f"- {', '.join(name for name, line in lines.items() if line.remedy == remedy)}: {remedy}")
    return 1 if lines["training"].remedy else 0


def machine_checks(autoload: bool) -> dict[str, Callable[[], Line]]:
    """Return the checks that try nothing on a device, by their labels. autoload: whether the user has set that to 1."""
    return {
        "tested": _tested,
        "python": _python,
        "torch": _torch,
        "torch_npu": partial(_torch_npu, autoload),
        "CANN": lambda: Line(ascend.cann()),
        "drivers": _drivers,
        "devices": _devices,
        "apex": _apex,
        "triton": _triton,
        "h5py": _h5py,
        "C compiler": _compiler,
    }


def run_check(check: Callable[[], Line]) -> Line:
    try:
        return check()
    except UserError as error:
        return Line("no", str(error))
    except ModuleNotFoundError as error:
        return Line("no", f"{error}; `pip install rdn-fast` brings what it needs")
    except Exception as error:  # whatever is broken, doctor is there to find it
        return Line("cannot be told", one_line(error))


def _tested() -> Line:
    return Line((resources.files("rdn_fast") / "tested.md").read_text(encoding="utf-8").partition("\n")[0])


def _python() -> Line:
    return Line(f"{platform.python_version()}, {sys.executable}, {platform.system()} {platform.machine()}")


def _torch() -> Line:
    import torch

    from rdn_fast import devices

    here = f"{torch.get_num_threads()} threads, {devices.cores()} cores"
    return Line(f"{torch.__version__}, built for {devices.torch_build()}; {here}")


def _torch_npu(autoload: bool) -> Line:
    if not ascend.installed():
        return Line("not installed", ascend.load())
    if (reason := ascend.load()) is not None:
        if autoload:
            remedy = f"{ascend.AUTOLOAD}=1 makes the other commands fail, too: unset it"
        else:
            remedy = (
                "a torchrun of your own imports torch, and so torch_npu, before rdn_fast does: "
                f"export {ascend.AUTOLOAD}=0 for it"
            )
        return Line("does not load", f"{reason}. {remedy}")
    from rdn_fast import devices

    here = not all(map(devices.is_host, devices.all_devices()))
    return Line(import_module("torch_npu").__version__, "" if here else ascend.no_device())


def _drivers() -> Line:
    versions, remedies = [], []
    for tool, (arguments, pattern) in _TOOLS.items():
        if not shutil.which(tool):
            continue
        done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=10, check=False)
        version = re.search(pattern, done.stdout)
        versions.append(f"{version[1]} ({tool})" if version and not done.returncode else f"unknown ({tool})")
        if done.returncode:
            remedies.append(
                f"`{tool} {arguments[0]}` ends with {done.returncode}; "
                "install the driver, or give the container its devices"
            )
    return Line(", ".join(versions) or f"neither {' nor '.join(_TOOLS)} is here", "; ".join(remedies))


def _devices() -> Line:
    from rdn_fast import devices

    states = []
    for device in devices.all_devices():
        try:
            states.append(f"{devices.describe(device)}, {bytes_in_words(devices.free_memory(device))} free")
        except RuntimeError as error:  # another process holds it, or it is broken
            states.append(f"{device}: {one_line(error)}")
    return Line("\n".join(states))


def _apex() -> Line:
    from rdn_fast.training.apex import missing_apex

    return Line("no", reason) if (reason := missing_apex()) is not None else Line("apex.amp is here")


def _triton() -> Line:
    from rdn_fast.rdb import triton_planes

    return Line("no", reason) if (reason := triton_planes.missing()) is not None else Line(metadata.version("triton"))


def _h5py() -> Line:
    import h5py

    return Line(f"{h5py.__version__}, HDF5 {h5py.version.hdf5_version}")


def _compiler() -> Line:
    return Line(compiler) if (compiler := native.compiler()) else Line("no", native.NO_COMPILER)


def _case(device: str):
    """Return the Case of rdn-b's usual training, in the mode that it would run in; float32 where auto is not known."""
    from rdn_fast import auto_level, devices, precision
    from rdn_fast.commands.tune_modes import cases_of
    from rdn_fast.rdb import autotune

    picked = devices.pick(device)
    case, _ = cases_of(*make_configs({"device": device, "opt_level": "O0"}, "rdn-b"), picked)
    low = precision.resolve("O1", "auto", picked)
    if auto_level.known_level(case, low) == "O1":
        case = dataclasses.replace(case, dtype=low.compute)
    return dataclasses.replace(case, mode=autotune.fastest_mode(case))


def _refusals(case) -> dict[str, str | None]:
    """Return why each impl cannot run the case; None if it can. One in C counts as built where it may be."""
    from rdn_fast.rdb import IMPLS, refusal
    from rdn_fast.rdb.in_c import BlockInC

    refusals = {}
    for impl in IMPLS.values():
        block, module = getattr(impl.module, "block", None), impl.module
        if isinstance(block, BlockInC):  # missing() would compile its kernels
            module = SimpleNamespace(missing=partial(getattr, block.kernels, "obstacle"))
        checked = dataclasses.replace(impl, module=module)
        refusals[impl.name] = refusal(checked, case.device, case.dtype, case.training)
    return refusals


def _able(refusals: dict[str, str | None]) -> list[str]:
    return [name for name, reason in refusals.items() if reason is None]


def _impls(device: str) -> Line:
    refusals = _refusals(_case(device))
    others = (f"{name} {reason}" for name, reason in refusals.items() if reason is not None)
    return Line("\n".join([f"{', '.join(_able(refusals))} can run", *others]))


def _level(device: str) -> Line:
    import torch

    from rdn_fast import auto_level, precision
    from rdn_fast.precision import dtype_name

    case = dataclasses.replace(_case(device), dtype=torch.float32)
    low = precision.resolve("O1", "auto", case.device)
    name = dtype_name(low.compute)
    shape = f"{case.batch} patches of {case.height}x{case.width} in float32 and {name}"
    level = auto_level.known_level(case, low)
    if not auto_level.needs_timing(case.device, low.compute):
        why = f"this CPU emulates {name}" if level == "O0" else f"{case.device} computes in {name}"
        return Line(f"auto: {level}, since {why}")
    if level:
        return Line(f"auto: {level}, by timing {shape}")
    return Line(f"auto: not timed yet for {shape}")


def _auto(device: str) -> Line:
    from rdn_fast.precision import dtype_name
    from rdn_fast.rdb import autotune

    case = _case(device)
    shape = f"{case.batch} patches of {case.height}x{case.width} in {dtype_name(case.dtype)}"
    if case.mode:
        shape += f", mode {case.mode}"
    able = _able(_refusals(case))
    known = autotune.remembered().get(case.key())
    if known in able:
        return Line(f"{known}: the fastest when {shape} were timed")
    if len(able) == 1:
        return Line(f"{able[0]}: no other can run")
    return Line(f"not timed yet for {shape}: the first run does that, or `rdn-fast tune --device {device}`")


def _cache() -> Line:
    folder = cache_folder()
    if folder.name == "rdn_fast":
        sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
        return Line(f"{folder}, {len(sizes)} files, {bytes_in_words(sum(sizes))}")
    return Line(
        f"{folder}, for this process",
        "it cannot be written, so each run compiles and times anew; set XDG_CACHE_HOME to a folder that can",
    )


def _training(device: str) -> Line:
    import_module("rdn_fast.training.run")
    case = _case(device)
    if not _able(_refusals(case)):
        return Line("cannot run", f"no implementation of the block can run on {case.device}")
    return Line(f"can run on {case.device}")
