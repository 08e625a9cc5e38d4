"""`python -m profiling.npu_plan [--write]`: what Ascend's compiler plans for npu_conv's kernels; no card is needed.

The first table has each kernel for each shape: the highest byte of L1, L0C and UB, what a source and a tile take (a
step of the weight gradient), seconds to compile for each target, and the errors that the compiled kernel has in the
emulator (npu_errors). The modules are those of training; they are executed on one image of few rows. The second table
has the errors of whole blocks. --write puts both into docs/ascend.md, between <!-- npu_plan --> and <!-- /npu_plan -->.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import torch

from bench.tables import markdown
from profiling import hivm, npu_errors
from profiling.hivm_order import Race
from rdn_fast.rdb import npu_conv_kernels
from rdn_fast.rdb.npu_conv_kernels import FLOATS, KINDS
from rdn_fast.rdb.npu_conv_planes import Planes

PAGE = Path(__file__).parents[1] / "docs/ascend.md"
BEGIN, END = "<!-- npu_plan -->", "<!-- /npu_plan -->"
TARGETS = ("Ascend910B2", "Ascend910B3", "Ascend910_9392")  # the last is an A3
SHAPES = {  # name: batch, G0, G, C, H, W
    "rdn-b": (64, 64, 64, 8, 32, 32),
    "rdn-a": (64, 64, 32, 6, 32, 32),
    "small": (16, 48, 48, 4, 24, 24),
    "odd": (16, 48, 16, 3, 20, 40),
}
BLOCKS = ((1, 64, 64, 8, 9, 19), (1, 64, 32, 6, 12, 32), (2, 32, 16, 3, 5, 7))


class Plan(NamedTuple):
    """Of one kernel, the same for all targets. Loads and products are of a source, the rest of a tile."""

    l1: str  # KiB
    l0c: str
    ub: str
    loads: int
    products: int
    ways_out: int
    vector_loads: int
    operations: int
    stores: int
    missing: int  # library functions


def plan(kind: str, shape: Planes) -> tuple[Plan, list[float]]:
    """Return a kernel's plan in float16, and the seconds that it takes to compile for each target.

    Raise ValueError where the targets' modules differ in more than the description of the target.
    """
    text = npu_conv_kernels.kernel(kind, shape.k, shape.row, shape.rows, torch.float16)
    modules, seconds = [], []
    for target in TARGETS:
        start = time.perf_counter()
        modules.append(hivm.compile_module(text, target))
        seconds.append(time.perf_counter() - start)
    if len({_without_target(module) for module in modules}) > 1:
        raise ValueError(f"{kind}: the targets' modules differ")
    functions = hivm.parse(modules[0]).values()
    calls = {name: n for function in functions for name, n in hivm.calls(function).items()}
    buffers = {name: size for function in functions for name, size in hivm.buffers(function).items()}

    def count(*prefixes: str) -> int:
        return sum(n for name, n in calls.items() if name.startswith(prefixes))

    kib = (f"{buffers.get(name, 0) / 1024:.0f}" for name in ("L1", "L0C", "UB"))
    cube = count("nd2nz"), count("conv2d", "mma"), count("fixpipe")
    vector = count("load_gm"), count("v", "broadcast"), count("store")
    return Plan(*kib, *cube, *vector, len(hivm.missing_functions(modules[0]))), seconds


def _without_target(module: str) -> str:
    return "\n".join(line for line in module.splitlines() if "dlti.target_system_spec" not in line)


def executed(name: str) -> tuple[int, int, int, int, int, int]:
    """Return the sizes of the block that is executed for a shape: its channels and width, and so its kernels."""
    _, g0, g, layers, height, width = SHAPES[name]
    rows = Planes(1, height, width, g0, g, layers).rows
    return 1, g0, g, layers, rows + 1, width


def kernels_table(names: tuple[str, ...] = tuple(SHAPES)) -> str:
    rows = []
    for name in names:
        batch, g0, g, layers, height, width = SHAPES[name]
        shape = Planes(batch, height, width, g0, g, layers)
        try:
            errors, races = [npu_errors.of_kernels(executed(name), dtype) for dtype in FLOATS], "none"
        except Race as race:
            errors, races = [dict.fromkeys(KINDS, torch.nan)] * len(FLOATS), str(race)
        for kind in KINDS:
            p, seconds = plan(kind, shape)
            cube, vector = f"{p.loads}, {p.products}, {p.ways_out}", f"{p.vector_loads}, {p.operations}, {p.stores}"
            cells = [f"{p.l1}, {p.l0c}, {p.ub}", cube, vector, str(p.missing)]
            found = [f"{each[kind]:.1f}" for each in errors]
            rows.append([f"`{kind}`", name, *cells, *found, races, *(f"{s:.1f}" for s in seconds)])
    columns = ["kernel", "shape", "L1, L0C, UB: KiB", "loads, products, ways out", "vector loads, operations, stores"]
    columns += ["not in the library", "error, fp16", "error, bf16", "races"]
    return markdown([*columns, "s, 910B2", "s, 910B3", "s, A3"], rows)


def blocks_table(blocks: tuple = BLOCKS) -> str:
    rows = []
    for sizes in blocks:
        for dtype in FLOATS:
            own, plain = npu_errors.of_block(sizes, dtype)
            cells = (f"{error:.1f}" for error in (*own, *plain))
            rows.append([" x ".join(map(str, sizes)), str(dtype).removeprefix("torch."), *cells])
    results = ("y", "gradient of x", "other gradients")
    return markdown(["block", "dtype", *results, *(f"naive: {name}" for name in results)], rows)


def page() -> str:
    """Return the part of docs/ascend.md that is written."""
    shapes = markdown(
        ["shape", "batch x G0 x G x layers x H x W", "executed on"],
        [[name, *(" x ".join(map(str, sizes)) for sizes in (SHAPES[name], executed(name)))] for name in SHAPES],
    )
    how = f"By ascendnpu-ir {hivm.version()}, torch {torch.__version__} and `python -m profiling.npu_plan --write`:"
    return "\n\n".join([how, shapes, kernels_table(), "Whole blocks:", blocks_table()])


def main(argv: list[str] | None = None) -> None:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m profiling.npu_plan", description=__doc__, formatter_class=kind)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/ascend.md")
    write = parser.parse_args(argv).write
    if hivm.package() is None:
        raise SystemExit("needs Ascend's compiler: make setup-ascend (Python 3.11, x86-64 Linux)")
    text = page()
    if write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
