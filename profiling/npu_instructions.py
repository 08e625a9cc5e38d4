"""`python -m profiling.npu_instructions`: list the instructions of npu_conv's kernels, as Ascend's compiler plans them.

The command compiles the kernels of npu_model's shapes and writes npu_instructions.json, from which npu_model computes
where there is no compiler. A kernel's cores are lists of lines and of loops, ["items", ...]:

    MTE2 nd2nz_half 40960                  a transfer of so many bytes
    M conv2d_... 9437184 294912 73728      products of 1 x 1, bytes of both operands that come from L1
    V vadd_... 65536                       a vector instruction, bytes of its widest operand
    set MTE1 MTE2 0|1                      a flag from a pipe to another; 0|1: its number alternates
    wait MTE2 MTE1 0
    barrier V                              the pipe, or ALL, waits for itself
    send FIX 0, receive MTE2 0             a flag between the cube core and its vector cores
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from profiling import hivm
from profiling.hivm import DTYPES
from profiling.hivm_library import View, function
from profiling.hivm_machine import Core, Program
from profiling.hivm_order import CUBE, VECTORS, Traffic
from profiling.npu_plan import KINDS, SHAPES
from rdn_fast.rdb import npu_conv_kernels
from rdn_fast.rdb.npu_conv_planes import Planes

FILE = Path(__file__).with_suffix(".json")
TARGET = "Ascend910B2"
COMMAND = "python -m profiling.npu_instructions"


class _Lister(Core):
    """Runs a function's loops and addresses, but no data, and lists what each pipe is told to do."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.lines: list = []

    def step(self, op):
        operands = [self.values[name] for name in op.operands]
        match op.name:
            case "scf.for":
                outer, bodies = self.lines, []
                for i in range(*operands):
                    self.values[op.regions[0].arguments[0]], self.lines = i, []
                    yield from self.run(op.regions[0])
                    bodies.append(self.lines)
                self.lines = outer
                self.lines.append(_Loop(op, bodies))
            case "hivm.hir.sync_block_wait":
                self.lines.append(f"receive {self._pipe(op, 'pipe')} {self._flag(op, operands)}")
            case "hivm.hir.sync_block_set":
                self.lines.append(f"send {self._pipe(op, 'tpipe')} {self._flag(op, operands)}")
            case "hivm.hir.set_flag" | "hivm.hir.wait_flag":
                event = op.attribute("static_event_id") or f"EVENT_ID{operands[0]}"
                pipes = self._pipe(op, "set_pipe"), self._pipe(op, "wait_pipe")
                kind = op.name.removeprefix("hivm.hir.").removesuffix("_flag")
                self.lines.append(" ".join((kind, *pipes, event.removeprefix("EVENT_ID"))))
            case "hivm.hir.pipe_barrier":
                self.lines.append(f"barrier {self._pipe(op, 'pipe')}")
            case _:
                yield from super().step(op)

    @staticmethod
    def _pipe(op, attribute: str) -> str:
        return op.attribute(attribute).removeprefix("PIPE_")

    def call(self, op, operands: list) -> None:
        name = op.attribute("callee")
        model = function(name)
        views = [value for value in operands if isinstance(value, View)]
        if model.events is None:
            self.lines.append(f"{model.pipe} {name} {max(map(_bytes, views))}")
            return
        waits, sets = (operands[model.events + i : model.events + i + 2] for i in (0, 2))
        self.lines += [f"wait MTE2 MTE1 {event}" for event in waits if event != -1]
        self.lines.append(f"M {name} {' '.join(map(str, _products(name, operands)))}")
        self.lines += [f"set MTE1 MTE2 {event}" for event in sets if event != -1]


def _bytes(view: View) -> int:
    return math.prod(view.sizes) * DTYPES[view.kind].itemsize


def _products(name: str, operands: list) -> tuple[int, int, int]:
    """Return the products of a macro of the matrix unit, and the bytes of both operands that it reads from L1."""
    if name.startswith("conv2d"):
        _, w, _, out = operands[:4]
        products = math.prod(out.sizes) * math.prod(w.sizes[:3]) * 16  # a pixel and an output: taps x input channels
        return products, products // w.sizes[3] * 2, _bytes(w)
    m, k, n = operands[3:6]
    return m * k * n, m * k * 2, k * n * 2


@dataclass
class _Loop:
    op: object
    bodies: list[list]


def instructions(text: str, target: str = TARGET) -> dict[str, list]:
    """Compile a kernel. Return its instructions for each kind of core, "cube" and "vector" if it has one.

    Raise ValueError where two iterations of a loop differ in more than alternating flags.
    """
    found = {}
    for name, op in hivm.parse(hivm.compile_module(text, target)).items():
        core = VECTORS[0] if name.endswith("_mix_aiv") else CUBE
        found["vector" if core in VECTORS else "cube"] = _fold([listed(op, core, text, 6, 5)], 6, 5)
    return found


def listed(op, core: str, text: str, items: int, inner: int) -> list:
    """Return the lines of a program of a function that has `items` items and `inner` sources or steps for each."""
    memory = View(torch.empty(0, dtype=torch.uint8), None, "i8", 0, [0], [1])
    pointers = text.count("tt.tensor_kind")
    if "@npu_conv_weight_gradient" in text:
        numbers = [items, 1, items, inner, 1, 1]  # items, splits, pairs, steps, a plane, a split
    else:
        numbers = [inner, items, items, 1, 1 << 20, 1, 1]  # sources, items, tiles, blocks, height, a plane, weights
    given = [0, memory, memory, *[memory] * pointers, *numbers, 1, 1, 1]
    lister = _Lister(op, given[-len(op.regions[0].arguments) :], core, Program(0, Counter(), Traffic()))
    assert list(lister.run(lister.region)) == []
    return lister.lines


def _fold(executions: list[list], items: int, inner: int) -> list:
    """Return one body for all executions of a body, in which loops are ["items" or "inner" or a number, body...].

    Lines are equal, but for flags whose number depends on whether the body was executed an even number of times before.
    """
    one = []
    for lines in zip(*executions, strict=True):
        if isinstance(lines[0], _Loop):
            (trips,) = {len(loop.bodies) for loop in lines}
            name = {items: "items", inner: "inner"}.get(trips, str(trips))
            one.append([name, *_fold([body for loop in lines for body in loop.bodies], items, inner)])
            continue
        even, odd = lines[0], lines[1 % len(lines)]
        (*words, _), (*others, second) = even.split(), odd.split()
        if words != others or any(line != (odd if i % 2 else even) for i, line in enumerate(lines)):
            raise ValueError(f"executions differ: {lines}")
        one.append(even if even == odd else f"{even}|{second}")
    return one


def key(text: str) -> str:
    """Return the name of a kernel in the file: its kind, and what its text hashes to."""
    kind = text.split("@npu_conv_", 1)[1].split("(", 1)[0]
    return f"{kind} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


@cache
def known() -> dict:
    """Parse the committed file: {"compiler": ..., "target": ..., "command": ..., "kernels": {key: {core: lines}}}."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def plan(text: str) -> dict[str, list]:
    """Return a kernel's instructions: the committed ones, else compiled now. ValueError where neither can be had."""
    name = key(text)
    if name in known()["kernels"]:
        return known()["kernels"][name]
    if hivm.package() is None:
        raise ValueError(f"no instructions of {name} in {FILE.name}: `make setup-ascend`, then `{COMMAND}`")
    return compiled(text)


@cache
def compiled(text: str) -> dict[str, list]:
    """instructions(text), once."""
    return instructions(text)


def texts() -> list[str]:
    """Return the kernels whose instructions are committed: of npu_plan's shapes, and with lower tiles."""
    found = []
    for batch, g0, g, layers, height, width in SHAPES.values():
        shape = Planes(batch, height, width, g0, g, layers)
        lower = {rows for rows in (1, 2, 4) if rows < shape.rows}
        for rows in (shape.rows, *lower):
            found += [npu_conv_kernels.sums(kind, shape.k, shape.row, rows, torch.float16) for kind in KINDS[:4]]
        found.append(npu_conv_kernels.weight_gradient(shape.k, shape.row, torch.float16))
    return found


def main() -> None:
    if hivm.package() is None:
        raise SystemExit("needs Ascend's compiler: make setup-ascend (Python 3.11, x86-64 Linux)")
    kernels = {key(text): compiled(text) for text in texts()}
    head = {"compiler": f"ascendnpu-ir {hivm.version()}", "target": TARGET, "command": COMMAND}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(cores)}" for name, cores in kernels.items())
    FILE.write_text(f'{json.dumps(head)[:-1]}, "kernels": {{\n{lines}\n}}}}\n', encoding="utf-8")
    print(f"written: profiling/{FILE.name}, {len(kernels)} kernels")


if __name__ == "__main__":
    main()
