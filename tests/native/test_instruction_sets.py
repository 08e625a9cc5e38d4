"""Both C files on other instruction sets than this processor's best, against the paper's equations and NumPy.

x86-64 levels run where this processor has them, and are compiled elsewhere; aarch64 runs there, or in qemu.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import ROOT
from test_patches import all_cuts
from test_rdb import SHAPES, block, in_float64, problem, solve

from bench.parity import assert_as_good_as_naive
from rdn_fast import native
from rdn_fast.rdb import naive

HERE = Path(__file__).parent
LEVELS = {  # what tells them apart, in the words of /proc/cpuinfo
    "x86-64-v2": {"ssse3", "sse4_2", "popcnt"},
    "x86-64-v3": {"avx2", "fma", "bmi2"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}
ARM = "aarch64"
FLAGS = ("-std=gnu11", "-O3", "-fopenmp")


def _tool(name: str) -> str:
    if (path := shutil.which(name)) is None:
        pytest.skip(f"needs {name} (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)")
    return path


def _compiler(target: str) -> list[str]:
    """Return the compiler's command for the target. Skips the test where there is none."""
    here = platform.machine()
    if target == ARM and here != ARM:
        return [_tool("aarch64-linux-gnu-gcc"), "-static"]
    if target != ARM and here != "x86_64":
        pytest.skip(f"compiled on x86_64, not on {here}")
    if (compiler := native.compiler()) is None:
        pytest.skip(native.NO_COMPILER)
    return [compiler] if target == ARM else [compiler, f"-march={target}"]


@cache
def _processor() -> set[str]:
    return set(
        next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    )


def _runner(target: str) -> list[str]:
    """Return the command that runs the target's programs. Skips the test where they can only be compiled."""
    if target == ARM:
        return [] if platform.machine() == ARM else [_tool("qemu-aarch64")]
    if missing := LEVELS[target] - _processor():
        pytest.skip(f"compiled only: this processor has no {', '.join(sorted(missing))}")
    return []


@pytest.fixture(scope="module")
def run(request, tmp_path_factory):
    """Return run(name, content), which compiles tests/native/NAME.c once and returns what it makes of the content."""
    folder = tmp_path_factory.mktemp(request.param)

    def run(name: str, content: bytes) -> bytes:
        program = folder / name
        if not program.exists():
            folders = [f"-I{ROOT}/rdn_fast/{room}" for room in ("rdb", "data")]
            source = HERE / f"{name}.c"
            subprocess.run([*_compiler(request.param), *FLAGS, *folders, source, "-o", program], check=True)
        (folder / "in").write_bytes(content)
        done = subprocess.run([*_runner(request.param), program, folder / "in", folder / "out"], check=False)
        assert done.returncode == 0, f"{name} on {request.param}"
        return (folder / "out").read_bytes()

    return run


def _content(numbers, *arrays) -> bytes:
    """Return the numbers as 64-bit integers, then the arrays' bytes."""
    return b"".join(np.ascontiguousarray(array).tobytes() for array in (np.array(numbers, np.int64), *arrays))


def _channels_last(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor).numpy()


def test_winograd_says_what_it_needs(tmp_path):
    source = ROOT / "rdn_fast" / "rdb" / "winograd.c"
    with pytest.raises(native.CannotBuild, match="needs AVX or aarch64"):
        native.compile_whole([*_compiler("x86-64-v2"), "-fopenmp", "-c", str(source)], tmp_path / "winograd.o")


@pytest.mark.parametrize("run", ["x86-64-v3", "x86-64-v4", ARM], indirect=True)
@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[4]], ids=str)
def test_a_block_is_as_good_as_naive(run, shape, seed):
    batch, g0, g, layers, height, width = shape
    arguments, upstream = problem(shape, torch.float32, seed)
    order = [
        "x",
        *(f"conv_w[{j}]" for j in range(layers)),
        *(f"conv_b[{j}]" for j in range(layers)),
        "fuse_w",
        "fuse_b",
    ]
    given = [arguments[name] for name in order]
    content = _content([batch, height, width, g0, g, layers], *map(_channels_last, [*given, upstream]))
    values = torch.from_numpy(np.frombuffer(run("run_block", content), np.float32).copy())

    oracle, plain = solve(block, *in_float64(arguments, upstream)), solve(naive.rdb, arguments, upstream)
    found = [upstream, *given]  # the output and its gradient have one shape
    parts = values.split([tensor.numel() for tensor in found])
    for name, like, part in zip(["y", *(f"gradient of {name}" for name in order)], found, parts, strict=True):
        last = like.permute(0, 2, 3, 1) if like.dim() == 4 else like
        result = part.view(last.shape).permute(0, 3, 1, 2) if like.dim() == 4 else part
        assert_as_good_as_naive(result, oracle[name], plain[name], torch.float32, f"{name}, shape {shape}, seed {seed}")


@pytest.mark.parametrize("run", [*LEVELS, ARM], indirect=True)
@pytest.mark.parametrize(("height", "width", "size"), [(4, 3, 1), (11, 8, 7), (17, 18, 16)])
def test_patches_are_the_same_bytes(run, height, width, size):
    cuts = all_cuts(height, width, size)
    n = len(cuts.index)
    head = [n, size, len(cuts.flat)]
    content = _content(head, cuts.start.astype(np.int64), cuts.pitch.astype(np.int64), cuts.plan.orientation, cuts.flat)
    made, values = run("run_patches", content), n * size * size * 3
    assert made[:values] == cuts.upright().tobytes()
    floats = np.frombuffer(made[values:], np.float32).reshape(n, size, size, 3)
    assert np.array_equal(floats, cuts.floats().permute(0, 2, 3, 1).numpy())
