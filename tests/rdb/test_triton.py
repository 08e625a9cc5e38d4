"""The row `triton_planes`: its numbers in Triton's interpreter, and its machine code for Hopper, which needs no card to compile."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import ROOT
from test_rdb import SHAPES, _poisoned_memory, block, check, in_float64, problem, solve  # noqa: F401

from bench.parity import assert_as_good_as_naive
from rdn_fast.errors import UserError
from rdn_fast.rdb import IMPLS, naive, triton_planes

triton = pytest.importorskip("triton")

SHARED_MEMORY = 232_448  # bytes that a program may use on Hopper
CONFIGS = triton_planes.CONFIGS
NUMBERS = range(max(map(len, CONFIGS.values())))
TILES = (
    1,
    20,
    12,
    2,
    37,
    11,
)  # batch, G0, G, C, H, W: two planes of x; tiles of pixels beside and on top of each other
SPLIT = (2, 13, 12, 1, 33, 32)  # enough pixels for the weights' gradients to be summed in two parts, of unequal size
POINTS = (24, 27, 22, 1, 1, 1)  # one pixel per image: padding everywhere

# name: shape, dtype, number of the configuration, whether y is written into a slice
CASES = {
    **{
        f"{shape} {dtype}": (shape, dtype, 0, False)
        for shape in (*SHAPES[:3], TILES)
        for dtype in (torch.float32, torch.bfloat16)
    },
    **{
        f"{shape} torch.float16": (shape, torch.float16, 0, False)
        for shape in (*SHAPES[:3], SHAPES[-1], TILES, SPLIT, POINTS)
    },
    **{f"configuration {number}": (TILES, torch.float16, number, False) for number in NUMBERS[1:]},
    "out": (SHAPES[2], torch.float16, 0, True),
}


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """{name of a case: (arguments, upstream, results, the buffer that out is a slice of)}."""
    if np.lib.NumpyVersion(np.__version__) >= "2.4.0" and triton.__version__.startswith("3.6."):
        pytest.skip(f"the interpreter of triton {triton.__version__} needs numpy < 2.4")
    folder = tmp_path_factory.mktemp("interpreted")
    problems = [problem(shape, dtype, seed) for seed, (shape, dtype, _, _) in enumerate(CASES.values())]
    outs = [middle(shape, dtype) if sliced else None for shape, dtype, _, sliced in CASES.values()]
    numbers = [number for _, _, number, _ in CASES.values()]
    torch.save(
        [(number, *given, out) for number, given, out in zip(numbers, problems, outs, strict=True)], folder / "in"
    )
    command = [sys.executable, Path(__file__).with_name("interpreted.py"), folder / "in", folder / "out"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return {
        name: (*given, *results)
        for name, given, results in zip(CASES, problems, torch.load(folder / "out"), strict=True)
    }


def middle(shape, dtype):
    """The middle third of a buffer of NaN, as a block's slice of the global fusion's input is."""
    batch, g0, _, _, height, width = shape
    return torch.full((batch, 3 * g0, height, width), float("nan"), dtype=dtype).to(memory_format=torch.channels_last)[
        :, g0 : 2 * g0
    ]


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_are_as_good_as_naives(name, interpreted):
    arguments, upstream, results, _ = interpreted[name]
    dtype = upstream.dtype
    oracle = solve(block, *in_float64(arguments, upstream))
    plain = solve(naive.rdb, arguments, upstream, torch.channels_last)
    assert results.keys() == oracle.keys()
    for result in results:
        assert results[result].dtype == dtype
        assert_as_good_as_naive(results[result], oracle[result], plain[result], dtype, f"{result}, {name}")


def test_y_is_written_into_out_and_nowhere_else(interpreted):
    _, _, results, out = interpreted["out"]
    assert torch.equal(out, results["y"])
    whole = out.as_strided((out.shape[0], 3 * out.shape[1], *out.shape[2:]), out.stride(), 0)
    assert whole[:, : out.shape[1]].isnan().all()
    assert whole[:, 2 * out.shape[1] :].isnan().all()


class Hopper:
    """A driver that knows its card but has none. Its number is no real card's, whose kernels Triton keeps by number."""

    def get_current_device(self):
        return 1000

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """A list that gets (name, kernel) of whatever the row would launch; nothing is launched."""
    from rdn_fast.rdb import triton_kernels

    kernels = []

    def build(name, grid, *args, **config):
        kernels.append((name, getattr(triton_kernels, name).warmup(*args, grid=grid, **config)))

    monkeypatch.setattr(triton_planes, "launch", build)
    monkeypatch.setattr(triton_planes, "_chosen", {})
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", Hopper())
    return kernels


def assembled(kernel, folder):
    """What ptxas says about a kernel: registers and spilled bytes per thread, and everything else."""
    (folder / "ptx").write_text(kernel.asm["ptx"])
    from triton.backends.nvidia.compiler import get_ptxas

    command = [get_ptxas(90).path, "-v", "--gpu-name", "sm_90a", folder / "ptx", "-o", folder / "cubin"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, stores, loads = (
        int(re.search(rf"(\d+) {what}", report)[1]) for what in ("registers", "bytes spill stores", "bytes spill loads")
    )
    return registers, stores + loads, report


HALF = (torch.float16, 64, 64)
BUILDS = [  # number of the configuration, dtype, G0, G
    (number, *build)
    for build in (HALF, (torch.bfloat16, 64, 64), (torch.float16, 70, 37), (torch.float16, 64, 32))
    for number in NUMBERS
]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "dtype", "g0", "g"), BUILDS)
def test_kernels_for_hopper_fit_and_use_its_matrix_units(number, dtype, g0, g, compiled, monkeypatch, tmp_path):
    monkeypatch.setattr(
        triton_planes, "CONFIGS", {name: (configs[min(number, len(configs) - 1)],) for name, configs in CONFIGS.items()}
    )
    arguments, upstream = problem((2, g0, g, 2, 8, 8), torch.float32, 0)
    solve(
        triton_planes.rdb,
        {name: tensor.to(dtype) for name, tensor in arguments.items()},
        upstream.to(dtype),
        torch.channels_last,
    )
    assert {name for name, _ in compiled} == set(CONFIGS)
    for name, kernel in {id(kernel): (name, kernel) for name, kernel in compiled}.values():
        what = f"{name} {triton_planes.CONFIGS[name][0]}"
        registers, spilled, report = assembled(kernel, tmp_path)
        products = Counter(re.findall(r"wgmma\.mma_async\S*?\.(m\d+n\d+k\d+)", kernel.asm["ptx"]))
        print(
            f"{what}: {registers} registers, {spilled} B spilled, {kernel.metadata.shared} B shared, {dict(products)}"
        )
        assert spilled == 0, f"{what}: {report}"
        assert kernel.metadata.shared <= SHARED_MEMORY, what
        assert "serialized" not in report, f"{what}: {report}"  # products that wait for each other
        assert g < 64 or products, what  # of narrower layers there are too few channels for wgmma's 64 rows


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 64, 64, 3, 33, 20), TILES], ids=str)
@pytest.mark.parametrize("number", NUMBERS)
def test_every_configuration_on_a_card(number, shape, dtype, seed, monkeypatch):
    monkeypatch.setattr(
        triton_planes, "CONFIGS", {name: (configs[min(number, len(configs) - 1)],) for name, configs in CONFIGS.items()}
    )
    monkeypatch.setattr(triton_planes, "_chosen", {})
    check(IMPLS["triton_planes"], torch.channels_last, shape, dtype, seed)


def test_wider_layers_are_refused():
    arguments, _ = problem((1, 8, 65, 1, 2, 2), torch.float16, 0)
    with pytest.raises(UserError, match=r"--rdb triton_planes: .* growth rates up to 64, not 65; "):
        triton_planes.rdb(
            arguments["x"], [arguments["conv_w[0]"]], [arguments["conv_b[0]"]], arguments["fuse_w"], arguments["fuse_b"]
        )


def test_without_triton_the_row_says_so():
    program = "import sys; sys.modules['triton'] = None; from rdn_fast.rdb import IMPLS; print(IMPLS['triton_planes'].module.missing())"
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert "needs the package triton" in ended.stdout, ended.stderr
