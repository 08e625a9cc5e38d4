"""`python -m profiling.npu_plan`: what Ascend's compiler plans for npu_conv's kernels, as tables; no card is needed.

The first: of each kernel and shape the highest byte of L1, L0C and UB, what a tile (or a step of the weight gradient)
takes, library functions that are called and missing, and the seconds to compile. The second: errors of blocks that the
compiled modules computed in the emulator, against float64, in roundings of the dtype (eps / 2 of the largest value).
"""

from __future__ import annotations

import time
from functools import cache

import torch

from profiling import hivm
from profiling.hivm_machine import Machine
from rdn_fast.rdb import naive, npu_conv, npu_conv_kernels
from rdn_fast.rdb.npu_conv_planes import Planes

TARGETS = ("Ascend910B2", "Ascend910B3", "Ascend910_9392")
SHAPES = {  # name: batch, G0, G, C, H, W
    "rdn-b": (64, 64, 64, 8, 32, 32),
    "rdn-a": (64, 64, 32, 6, 32, 32),
    "small": (16, 48, 16, 3, 20, 40),
}
BLOCKS = ((1, 64, 64, 8, 9, 19), (1, 64, 32, 6, 12, 32), (2, 32, 16, 3, 5, 7))
KINDS = ("layer", "fusion", "gradient", "input_gradient", "weight_gradient")


def plan(kind: str, shape: Planes, target: str) -> tuple[object, ...]:
    """Return the numbers of a kernel in the first table, without the seconds."""
    text = npu_conv_kernels.kernel(kind, shape.k, shape.row, shape.rows, torch.float16)
    module = hivm.compile_module(text, target)
    functions = hivm.parse(module).values()
    calls = {name: n for function in functions for name, n in hivm.calls(function).items()}
    buffers = {name: size for function in functions for name, size in hivm.buffers(function).items()}

    def count(*prefixes: str) -> int:
        return sum(n for name, n in calls.items() if name.startswith(prefixes))

    kib = (f"{buffers.get(name, 0) / 1024:.0f}" for name in ("L1", "L0C", "UB"))
    cube = count("nd2nz"), count("conv2d", "mma"), count("fixpipe")
    vector = count("load_gm"), count("v", "broadcast"), count("store")
    return *kib, *cube, *vector, len(hivm.missing_functions(module))


def plans(kind: str, shape: Planes) -> str:
    """Return a row of the first table. Raise ValueError where the targets' plans differ."""
    start = time.perf_counter()
    found = {plan(kind, shape, target) for target in TARGETS}
    seconds = (time.perf_counter() - start) / len(TARGETS)
    if len(found) > 1:
        raise ValueError(f"{kind}: the plans differ: {found}")
    return row(kind, *found.pop(), f"{seconds:.2f}")


def executed(sizes: tuple[int, ...], dtype: torch.dtype) -> str:
    """Return a row of the second table: a random block of batch, G0, G, C, H, W."""
    batch, g0, g, layers, height, width = sizes
    torch.manual_seed(0)
    seen = [g0 + j * g for j in range(layers)]
    tensors = [torch.randn(batch, g0, height, width), torch.randn(g0, g0 + layers * g, 1, 1) * 0.05, torch.randn(g0)]
    tensors += [torch.randn(g, n, 3, 3) * 0.1 * n**-0.5 for n in seen]
    tensors += [(-1.0) ** torch.arange(g) for _ in seen]  # keeps the ReLUs' inputs away from 0
    upstream = torch.randn(batch, g0, height, width)

    def solve(rdb, precision):
        leaves = [tensor.to(dtype).to(precision).requires_grad_() for tensor in tensors]
        x, fuse_w, fuse_b, *convs = leaves
        y = rdb(x, convs[:layers], convs[layers:], fuse_w, fuse_b)
        return [y.detach(), *torch.autograd.grad(y, leaves, upstream.to(dtype).to(precision))]

    exact, own, plain = solve(naive.rdb, torch.float64), solve(npu_conv.rdb, dtype), solve(naive.rdb, dtype)
    half = torch.finfo(dtype).eps / 2

    def worst(results) -> list[str]:
        roundings = [((r - e).abs().max() / e.abs().max() / half).item() for r, e in zip(results, exact, strict=True)]
        return [f"{max(part):.1f}" for part in (roundings[:1], roundings[1:2], roundings[2:])]

    return row(" x ".join(map(str, sizes)), str(dtype).removeprefix("torch."), *worst(own), *worst(plain))


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def header(*cells: str) -> list[str]:
    return ["", row(*cells), row(*["---"] * len(cells))]


@cache
def machine(text: str) -> Machine:
    return Machine(hivm.compile_module(text))


def emulate(text: str, arguments, items: int) -> None:
    """Stand for npu_conv.launch: run the compiled module on the host, on three cores."""
    if items:
        machine(text).run(list(arguments), min(3, items))


def main() -> None:
    if hivm.package() is None:
        raise SystemExit("needs Ascend's compiler: make setup-ascend (Python 3.11, x86-64 Linux)")
    columns = ("kernel", "L1 KiB", "L0C KiB", "UB KiB", "loads", "products", "fixpipe", "vector loads", "operations")
    for name, (batch, g0, g, layers, height, width) in SHAPES.items():
        shape = Planes(batch, height, width, g0, g, layers)
        tile = f"{shape.k} channels a plane, tiles of {shape.rows} rows of {shape.row} pixels"
        print(f"\n{name}, {', '.join(TARGETS)}: {tile}")
        print("\n".join(header(*columns, "stores", "not in the library", "s to compile")))
        for kind in KINDS:
            print(plans(kind, shape), flush=True)
    npu_conv.launch = emulate
    results = ("y", "gradient of x", "other gradients")
    print("\n".join(header("block", "dtype", *results, *(f"naive: {name}" for name in results))))
    for sizes in BLOCKS:
        for dtype in npu_conv_kernels.FLOATS:
            print(executed(sizes, dtype), flush=True)


if __name__ == "__main__":
    main()
