"""Compile and launch kernels for Ascend's A2 and A3 cards that are text in the IR of its compiler, by triton-ascend.

triton-ascend turns Triton into that IR and gives it to bishengir-compile, which calls CANN's hivmc for machine code.
Here the text takes the place of its own, so that only the last stage runs. triton-ascend keeps the result in the cache
folder, loads it, and launches it on torch_npu's current stream. No part of this ever ran on a card.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from functools import cached_property
from importlib import import_module
from pathlib import Path

import torch

from rdn_fast.cache import cache_folder
from rdn_fast.errors import UserError, what_failed

_CHIPS = r"Ascend910B[1-4]|Ascend910_93"  # A2 and A3; an Ascend910B without a number is of the first 910
TARGET = "Ascend910B2"  # where there is no card
_CONVOLUTION = b"conv2d_group_half_to_float"
_CANN = "source CANN's set_env.sh (8.3 or newer)"
# One workspace between cube and vector cores, not several: else a tile's epilogue is done by one vector core of two.
OPTIONS = {"limit_auto_multi_buffer_only_for_local_buffer": True}  # of triton-ascend; bishengir-compile's have dashes
_TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}


class Toolchain:
    """The compiler, and the kernels that it compiled in this process."""

    def __init__(self):
        self.kernels: dict[str, object] = {}

    @cached_property
    def missing(self) -> str | None:
        """Return what the current card lacks to run such kernels, or None. Compiles nothing."""
        chip = torch.get_device_module("npu").get_device_name()
        if not re.match(_CHIPS, chip):
            return f"runs on Ascend A2 (910B1 to B4) and A3 cards only: the compiler has no target for {chip}"
        try:
            import_module("triton.backends.ascend.compiler")
        except Exception as error:  # not there, broken, or another triton
            return f"needs `pip install triton-ascend==3.2.0 pybind11`; its import fails: {what_failed(error)}"
        for program in ("bishengir-compile", "hivmc"):
            if shutil.which(program) is None:
                return f"needs CANN's {program}, which is not in PATH; {_CANN}"
        return _library_lacks_convolution(Path(shutil.which("bishengir-compile")).resolve())

    @cached_property
    def cores(self) -> int:
        """The number of matrix units; without a card 24, which most A2 and A3 cards have."""
        try:
            return _triton().runtime.driver.active.utils.get_aicore_num()
        except Exception:  # no triton, another one, or no card
            return 24

    def launch(self, text: str, arguments: tuple[torch.Tensor | int, ...], items: int) -> None:
        """Run a kernel on the current stream, a program for each core and at most `items`. Compile it before, once.

        Raises UserError when it cannot be compiled.
        """
        self.compile(text, arguments)
        self.kernels[text][min(self.cores, items), 1, 1](*arguments)

    def compile(self, text: str, arguments: tuple[torch.Tensor | int, ...]) -> None:
        """Compile a kernel for the current card, once. Of the arguments the types count. Raises UserError."""
        if text not in self.kernels:
            try:
                self.kernels[text] = compile_kernel(text, arguments)
            except Exception as error:  # of the front end, the compiler, or the cache
                raise UserError(f"a kernel cannot be compiled: {what_failed(error)}; choose another --rdb") from error

    def clear(self) -> None:
        """Forget all."""
        vars(self).clear()
        self.kernels = {}


toolchain = Toolchain()


def compile_kernel(text: str, arguments: tuple[torch.Tensor | int, ...]):
    """Return triton-ascend's handle of a kernel, a CompiledKernel, from the cache folder if it was compiled before."""
    triton = _triton()
    from triton.compiler.compiler import ASTSource

    class Text(ASTSource):
        """A kernel whose stages before the last are done: triton.compile asks a source for its stage and its IR."""

        def __init__(self):
            self.ext = "npubin"  # the first stage to run
            self.name = re.search(r"func\.func @(\w+)", text)[1]
            self.signature = {
                i: _TYPES[a.dtype] if isinstance(a, torch.Tensor) else "i32" for i, a in enumerate(arguments)
            }
            self.constants = {}

        def hash(self):
            return hashlib.sha256(text.encode()).hexdigest()

        def make_ir(self, *_):
            return text

    return triton.compile(Text(), options=OPTIONS)


def compile_alone(text: str, compiler: Path, target: str, folder: Path) -> str:
    """Compile a kernel by bishengir-compile alone, without a card, with the options that triton-ascend gives, and ours.

    It leaves the module that hivmc gets in `folder`/module.hivm.opt.mlir, and machine code in `folder`/kernel*.o, as
    far as it comes. Return its words.
    """
    source = folder / "kernel.mlir"
    source.write_text(re.sub(r', mix_mode = "\w+"', "", text))  # triton-ascend takes that out, too
    options = ["enable-hfusion-compile", "enable-hivm-compile", "enable-triton-kernel-compile"]
    options += ["enable-auto-multi-buffer", "enable-auto-bind-sub-block"]
    options += [name.replace("_", "-") for name in OPTIONS]
    flags = [f"--target={target}", f"--save-temps={folder}", *(f"--{option}=true" for option in options)]
    command = [compiler, source, *flags, "-o", folder / "kernel"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout + done.stderr


def find_compiler() -> Path:
    """Return the bishengir-compile in PATH. Raises UserError when there is none."""
    if (compiler := shutil.which("bishengir-compile")) is None:
        raise UserError(f"needs CANN's bishengir-compile, which is not in PATH; {_CANN}")
    return Path(compiler).resolve()


def check_compiler(text: str) -> None:
    """Compile a kernel for TARGET by the compiler in PATH. Raises UserError where no machine code comes out."""
    with tempfile.TemporaryDirectory() as folder:
        words = compile_alone(text, find_compiler(), TARGET, Path(folder))
        if any(Path(folder).glob("kernel*.o")):
            return
        planned = Path(folder, "module.hivm.opt.mlir").exists()
        hivmc = "hivmc, which makes machine code, is not in PATH" if shutil.which("hivmc") is None else "hivmc fails"
        raise UserError(f"{f'planned, but {hivmc}' if planned else 'not planned'}: {what_failed(RuntimeError(words))}")


def programs() -> dict[str, str]:
    """Return the versions of the compiler's programs that are in PATH, as they tell them; "not in PATH" otherwise."""
    return {name: _version(name) for name in ("bishengir-compile", "hivmc", "bisheng")}


def _version(program: str) -> str:
    if shutil.which(program) is None:
        return "not in PATH"
    command = [program, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10, check=False)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if re.search(r"\d\.\d", line)]
    return "; ".join(lines[:2]) or f"tells no version (exit code {done.returncode})"


def libraries() -> dict[str, bool]:
    """Return the files of macros beside the bishengir-compile in PATH, and whether each has the convolution.

    Raises UserError when there is no bishengir-compile.
    """
    files = _library_files(find_compiler())
    return {file.name: _CONVOLUTION in file.read_bytes() for file in files}


def _triton():
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache_folder() / "triton"))  # read at each look into the cache
    import triton

    return triton


def _library_lacks_convolution(compiler: Path) -> str | None:
    """Return the refusal for a CANN whose library of macros has no convolution; None if it has, or is not found."""
    files = _library_files(compiler)
    if files and not any(_CONVOLUTION in file.read_bytes() for file in files):
        return f"needs a CANN whose library has {_CONVOLUTION.decode()}, which {files[0].parent} has not"
    return None


def _library_files(compiler: Path) -> list[Path]:
    return sorted({file for root in compiler.parents[:2] for file in root.glob("**/meta_op*.bc")})
