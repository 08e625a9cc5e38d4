"""Compiles the package's C files for this processor on first use, and loads them."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
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
    It is compiled anew when the source, the compiler's command or the processor has changed, or the file is damaged.
    """
    if (program := compiler()) is None:
        raise CannotBuild(NO_COMPILER)
    command = [program, *_FLAGS, *flags, *_openmp(), str(source)]
    built_from = b"\0".join([*map(os.fsencode, command), source.read_bytes(), _processor().encode()])
    name = f"{source.stem}-{hashlib.sha256(built_from).hexdigest()[:16]}"
    try:
        for file in cache_folder().glob(f"{name}-*.so"):
            if _written_by_user_alone(file) and file.stem == f"{name}-{_digest(file.read_bytes())}":
                with contextlib.suppress(OSError):
                    return ctypes.CDLL(str(file))
        return ctypes.CDLL(str(_build(command, name)))
    except OSError as error:
        raise CannotBuild(f"could not be built or loaded: {error}") from None


def _build(command: list[str], name: str) -> Path:
    """Compile to the cache folder. The file's name ends in its content's digest: to load a part of it is a bus error.

    Other processes may build the same file.
    """
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        compiled = Path(folder) / "library.so"
        _compile(command, compiled)
        content = compiled.read_bytes()
    file = cache_folder() / f"{name}-{_digest(content)}.so"
    with atomic_path(file) as temporary:
        temporary.write_bytes(content)
        temporary.chmod(0o700)
    return file


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _written_by_user_alone(file: Path) -> bool:
    """Return whether nobody else can have written the file, which would be loaded as code."""
    if not hasattr(os, "getuid"):  # no owners to compare: Windows
        return True
    state = file.stat()
    return state.st_uid == os.getuid() and not state.st_mode & 0o022


def compile_whole(command: list[str], file: Path) -> None:
    """Run the compiler's command and put its output at `file` atomically. Raises CannotBuild."""
    with atomic_path(file) as temporary:
        _compile(command, temporary)
        temporary.chmod(0o700)


def _compile(command: list[str], output: Path) -> None:
    done = subprocess.run(
        [*command, "-o", str(output)], capture_output=True, text=True, errors="backslashreplace", check=False
    )
    if done.returncode:
        ended = f"{command[0]} ended with {done.returncode}"
        problem = next((line for line in done.stderr.splitlines() if "error" in line.lower()), ended)
        raise CannotBuild(f"could not be compiled: {problem}")


def _openmp() -> list[str]:
    """Return flags that link torch's own OpenMP runtime, if it is loaded. A second one would compete for the cores."""
    try:
        lines = Path("/proc/self/maps").read_bytes().splitlines()  # names of files may be any bytes
    except OSError:
        return []
    mapped = (os.fsdecode(line.split(maxsplit=5)[-1]) for line in lines)
    runtime = next((file for file in mapped if "libgomp" in file or "libiomp5" in file), None)
    return ["-Wl,--no-as-needed", runtime, "-Wl,--as-needed"] if runtime else []


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()
