"""Compiles the package's C files for this processor on first use, and loads them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

from rdn_fast.cache import cache_folder
from rdn_fast.files import atomic_path

_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")

NO_COMPILER = "needs a C compiler (gcc or clang; $CC names another)"


class CannotBuild(Exception):
    """Why there is no library, as the predicate of a sentence: "could not be compiled: ..."."""


def compiler() -> str | None:
    """Return the path of the C compiler: $CC, gcc or clang; None if there is none."""
    return next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)


@cache
def library(source: Path, *flags: str) -> ctypes.CDLL:
    """Return the C file's library, from the user's cache folder if it was compiled before. Raises CannotBuild.

    `flags`: further ones for the compiler.
    It is compiled anew when the source, the compiler's command or the processor has changed.
    """
    if (program := compiler()) is None:
        raise CannotBuild(NO_COMPILER)
    command = [program, *_FLAGS, *flags, *_openmp(), str(source)]
    key = hashlib.sha256("\0".join([*command, source.read_text(), _processor()]).encode()).hexdigest()[:16]
    try:
        file = cache_folder() / f"{source.stem}-{key}.so"
        if file.exists() and _written_by_user_alone(file):
            try:
                return ctypes.CDLL(str(file))
            except OSError:  # damaged: compile it anew
                pass
        compile_whole(command, file)
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise CannotBuild(f"could not be built or loaded: {error}") from None


def _written_by_user_alone(file: Path) -> bool:
    """Return whether nobody else can have written the file, which would be loaded as code."""
    if not hasattr(os, "getuid"):  # no owners to compare: Windows
        return True
    state = file.stat()
    return state.st_uid == os.getuid() and not state.st_mode & 0o022


def compile_whole(command: list[str], file: Path) -> None:
    """Run the compiler's command and put its output at `file` atomically. Raises CannotBuild."""
    with atomic_path(file) as temporary:  # other processes may build the same file
        done = subprocess.run([*command, "-o", str(temporary)], capture_output=True, text=True, check=False)
        if done.returncode:
            ended = f"{command[0]} ended with {done.returncode}"
            problem = next((line for line in done.stderr.splitlines() if "error" in line), ended)
            raise CannotBuild(f"could not be compiled: {problem}")
        temporary.chmod(0o700)


def _openmp() -> list[str]:
    """Return flags that link torch's own OpenMP runtime, if it is loaded. A second one would compete for the cores."""
    try:
        mapped = [line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    except OSError:
        return []
    runtime = next((file for file in mapped if "libgomp" in file or "libiomp5" in file), None)
    return ["-Wl,--no-as-needed", runtime, "-Wl,--as-needed"] if runtime else []


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()
