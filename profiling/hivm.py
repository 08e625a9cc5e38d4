"""Compile kernels with Ascend's compiler, no card needed, and read the module that it would hand to hivmc.

bishengir-compile (PyPI's ascendnpu-ir; `make setup-ascend` installs it) plans everything but the machine code: buffers
at addresses in L1, L0C and UB, double buffers, flags, and the split into cube and vector cores. hivmc, which
only CANN has, turns that module into machine code and links a library of macros, whose bitcode is in the package.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rdn_fast.devices.npu_kernels import TARGET, compile_alone

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "i8": torch.uint8, "i1": torch.bool}
SPACES = {"cbuf": ("L1", 512 << 10), "cc": ("L0C", 128 << 10), "ub": ("UB", 192 << 10)}  # name, bytes; of A2 and A3
DYNAMIC = -(1 << 63)  # stands for an operand in lists of sizes, strides and offsets


def package() -> Path | None:
    """Return the folder of the package ascendnpu-ir: $RDN_FAST_ASCENDNPU_IR, or of .venv-ascend; None if not there."""
    chosen = os.environ.get("RDN_FAST_ASCENDNPU_IR")
    root = Path(__file__).parents[1] / ".venv-ascend"
    found = [Path(chosen)] if chosen else root.glob("lib/python3*/site-packages/ascendnpuir")
    return next((folder for folder in found if (folder / "bin/bishengir-compile").is_file()), None)


def version() -> str:
    """Return the package's version."""
    return next(package().parent.glob("ascendnpu_ir-*.dist-info")).name.split("-")[1].removesuffix(".dist")


def compile_module(text: str, target: str = TARGET) -> str:
    """Return the module before hivmc. Raise ValueError with the compiler's words where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        words = compile_alone(text, package() / "bin/bishengir-compile", target, Path(folder))
        saved = Path(folder, "module.hivm.opt.mlir")
        if not saved.exists():
            raise ValueError(f"{target}: {words}")
        return saved.read_text()


def missing_functions(module: str) -> list[str]:
    """Return the library functions that the module calls and the package's library lacks: it would not link."""
    library = b"".join(file.read_bytes() for file in package().glob("lib/meta_op.ai[cv].bc"))
    called = re.findall(r"func\.func private @(\w+)", module)
    return [name for name in called if f"_mlir_ciface_{name}".encode() not in library]


@dataclass
class Region:
    """A block of operations: the names of its arguments, and its operations."""

    arguments: list[str] = field(default_factory=list)
    operations: list[Op] = field(default_factory=list)


@dataclass
class Op:
    """An operation. `text`: its attributes and types as they are printed in MLIR's generic form."""

    name: str
    result: str | None
    operands: list[str]
    text: str
    regions: list[Region] = field(default_factory=list)

    def attribute(self, name: str) -> str | None:
        """Return the text of an attribute: of `#hivm.pipe<PIPE_V>` what the brackets hold, of `4 : i64` the 4."""
        found = re.search(rf'\b{name} = (?:#[\w.]+<|@|")?([-\w.+]+)', self.text)
        return found and found[1]

    def numbers(self, name: str) -> list[int]:
        """Return an attribute that is an array of integers."""
        return [int(n) for n in re.search(rf"\b{name} = array<i\d+(?:: ([^>]*))?>", self.text)[1].split(",")]

    @property
    def type(self) -> str:
        """The result's type."""
        return self.text.rpartition(" -> ")[2]

    def walk(self) -> Iterator[Op]:
        """Yield the operation and all inside it."""
        yield self
        for region in self.regions:
            for op in region.operations:
                yield from op.walk()


@dataclass(frozen=True)
class Layout:
    """A memref's type: sizes and strides in elements (DYNAMIC where unknown), the element's type, the address space."""

    sizes: list[int]
    strides: list[int] | None
    kind: str
    space: str | None

    @classmethod
    def parse(cls, text: str) -> Layout:
        *sizes, kind = re.match(r"memref<((?:[\d?]+x)*\w+)", text)[1].split("x")
        sizes = [DYNAMIC if size == "?" else int(size) for size in sizes]
        strides = None if DYNAMIC in sizes else [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
        if found := re.search(r"strided<\[([^\]]*)\]", text):
            strides = [DYNAMIC if "?" in stride else int(stride) for stride in found[1].split(",") if stride]
        space = re.search(r"address_space<(\w+)>", text)
        return cls(sizes, strides, kind, space and space[1])

    @property
    def bytes(self) -> int:
        bits = 1 if self.kind == "i1" else 8 * DTYPES[self.kind].itemsize
        return -(-math.prod(self.sizes) * bits // 8)


def parse(module: str) -> dict[str, Op]:
    """Return the module's device functions that have a body, by name."""
    command = [package() / "bin/bishengir-opt", "--mlir-print-op-generic", "--mlir-print-local-scope", "-"]
    generic = subprocess.run(command, input=module, capture_output=True, text=True, check=True).stdout
    top = Op("top", None, [], "", [Region()])
    open_ops = [top]
    for line in map(str.strip, generic.splitlines()):
        if match := re.match(r'(?:(%\w+) = )?"([\w.]+)"\(([^)]*)\)(.*)$', line):
            operands = [operand.strip() for operand in match[3].split(",") if operand.strip()]
            op = Op(match[2], match[1], operands, match[4])
            open_ops[-1].regions[-1].operations.append(op)
            if line.endswith("({"):
                op.regions.append(Region())
                open_ops.append(op)
        elif line.startswith("^bb"):
            open_ops[-1].regions[-1].arguments.extend(re.findall(r"(%\w+):", line))
        elif line.startswith("}, {"):
            open_ops[-1].regions.append(Region())
        elif line.startswith("})"):
            open_ops.pop().text += line[2:]
    functions = [op for op in top.walk() if op.name == "func.func" and op.regions[0].operations]
    return {op.attribute("sym_name"): op for op in functions if op.attribute("hacc.function_kind") != "HOST"}


def buffers(function: Op) -> dict[str, int]:
    """Return the highest byte that is planned of each memory: {"L1": 229376, "L0C": 65536}."""
    ops = list(function.walk())
    constants = {op.result: op.attribute("value") for op in ops if op.name == "arith.constant"}
    ends: Counter[str] = Counter()
    for op in ops:
        if op.name == "hivm.hir.pointer_cast":
            layout = Layout.parse(op.type)
            name = SPACES[layout.space][0]
            ends[name] = max(ends[name], *(int(constants[at]) + layout.bytes for at in op.operands))
    return dict(ends)


def calls(function: Op) -> dict[str, int]:
    """Return how often each library function stands in the function; inside a loop it counts once."""
    return dict(Counter(op.attribute("callee") for op in function.walk() if op.name == "func.call"))
