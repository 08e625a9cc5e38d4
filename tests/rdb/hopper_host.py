"""Run hopper's kernels on a host: hopper.cu compiled as C++, with stand-ins for Hopper's instructions (host/)."""

import ctypes
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch

from rdn_fast.devices.cuda_kernels import Boxes
from rdn_fast.rdb import hopper, hopper_layout

HERE = Path(__file__).with_name("host")
FLAGS = ("-std=c++20", "-O2", "-march=native", "-fPIC", "-shared", "-pthread", "-w")


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


class Map(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("sizes", ctypes.c_long * 3), ("box", ctypes.c_long * 3)]


def library(folder: Path, *change: str, patience: int):
    """Return function(dtype) that compiles the kernels in `folder`, after a change (old, new) of their source.

    patience: seconds until a thread is said to wait for ever.
    """

    @cache
    def build(dtype: torch.dtype) -> ctypes.CDLL:
        text = hopper.SOURCE.read_text()
        assert not change or text.count(change[0]) == 1
        name = f"{len(list(folder.iterdir()))}-{hopper.TYPES[dtype]}"
        (folder / name).mkdir()
        (folder / name / "hopper.cu").write_text(text.replace(*change) if change else text)
        output = folder / name / "hopper.so"
        defines = [option for option in hopper.options(dtype) if option.startswith("-D")]
        defines.append(f"-DPATIENCE={patience}")
        command = [compiler(), *FLAGS, *defines, f"-I{HERE}", f"-I{folder / name}", HERE / "hopper.cpp"]
        subprocess.run([*command, "-o", output], check=True)
        loaded = ctypes.CDLL(str(output))
        loaded.launch.restype = ctypes.c_char_p
        return loaded

    return build


def launch(library_of, name: str, grid: tuple[int, int], memory: int, *arguments) -> None:
    """Stand for hopper.launch. library_of: see `library`. AssertionError tells what went wrong in the kernel."""
    values = [_value(argument) for argument in arguments]
    pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    kernels = library_of(arguments[0].tensor.dtype)
    fault = kernels.launch(name.encode(), *grid, hopper_layout.THREADS, ctypes.c_long(memory), pointers)
    assert fault is None, f"{name}: {fault.decode()}"


def _value(argument):
    if isinstance(argument, Boxes):
        sizes = (ctypes.c_long * 3)(*reversed(argument.tensor.shape))
        return Map(argument.tensor.data_ptr(), sizes, (ctypes.c_long * 3)(*reversed(argument.box)))
    return ctypes.c_void_p(argument.data_ptr()) if isinstance(argument, torch.Tensor) else ctypes.c_int(argument)
