"""The simulated npu: whether it can be used here, its compiled library, and the environment of its processes.

Only processes that import the torch_npu beside this file have the device: torch has room for one such device, which
cannot be removed again. `python simulated_npu.py` prints where the library is.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from rdn_fast import native
from rdn_fast.cache import cache_folder

TORCH = "2.13."  # torch's headers and its rules for devices change with every minor version
HERE = Path(__file__).resolve().parent
SOURCES = HERE / "csrc"
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-shared", "-w")  # -w: the warnings would be about torch's headers


class CannotSimulate(Exception):
    """Raised with the reason why there is no simulated npu here."""


def why_not() -> str | None:
    """Return why the simulated npu cannot be used here; None if it can."""
    if not torch.__version__.startswith(TORCH):
        return f"the simulated npu is written for torch {TORCH}*, this is {torch.__version__}"
    if sys.platform != "linux":
        return f"the simulated npu is written for Linux, this is {sys.platform}"
    if _installed("torch_npu"):
        return "the real torch_npu is installed here, and torch has room for one of them only"
    return None if _compiler() else "the simulated npu needs a C++ compiler (g++, or what $CXX names)"


def library() -> Path:
    """Return the path of the device's library, compiled on first use (10 s). Raises CannotSimulate."""
    if (reason := why_not()) is not None:
        raise CannotSimulate(reason)
    torch_folder = Path(torch.__file__).parent
    command = [
        _compiler(),
        *FLAGS,
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        "-isystem",
        str(torch_folder / "include"),
        str(SOURCES / "fake_npu.cpp"),
        f"-L{torch_folder / 'lib'}",
        "-ltorch_cpu",
        "-lc10",
    ]
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=False).stdout
    sources = (path.read_text() for path in sorted(SOURCES.iterdir()))
    key = hashlib.sha256("\0".join([torch.__version__, version, *command, *sources]).encode()).hexdigest()[:16]
    file = cache_folder() / f"fake_npu-{key}.so"
    if not file.exists():
        try:
            native.compile_whole(command, file)
        except native.CannotBuild as reason:
            raise CannotSimulate(f"the simulated npu {reason}") from None
    return file


def environment(**more: str) -> dict[str, str]:
    """Return os.environ for a process that may import the simulated torch_npu, with the variables `more`."""
    paths = [str(HERE), str(HERE.parent), str(HERE.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", **more}


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def _installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    try:
        print(library())
    except CannotSimulate as error:
        sys.exit(str(error))
