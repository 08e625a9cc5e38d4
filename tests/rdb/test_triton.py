"""triton_planes: its results in Triton's interpreter, and its machine code for Hopper, compiled without a GPU."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hopper import SHARED_MEMORY, Hopper
from runs import ROOT
from test_rdb import SHAPES, _poisoned_memory, block, check, in_float64, problem, solve  # noqa: F401

from bench.parity import assert_as_good_as_naive
from rdn_fast.errors import UserError
from rdn_fast.rdb import IMPLS, naive, refusal, triton_planes
from rdn_fast.rdb.triton_configs import CANDIDATES

triton = pytest.importorskip("triton")

NUMBERS = range(max(map(len, CANDIDATES.values())))
# batch, G0, G, C, H, W
TILES = (1, 20, 12, 2, 37, 11)  # two planes of x; several pixel tiles across and down
SPLIT = (2, 13, 12, 1, 33, 32)  # enough pixels for two splits of the weights' gradients, of unequal size
POINTS = (24, 27, 22, 1, 1, 1)  # one pixel per image: padding everywhere

SIXTEENS = (1, 48, 16, 2, 19, 13)  # channels are multiples of 16, three planes of x; pixels are multiples of nothing

HALF, FLOAT = torch.float16, torch.float32
CASES = [  # shape, dtype of x, of the parameters, number of the configuration
    *((shape, dtype, dtype, 0) for dtype in (FLOAT, HALF, torch.bfloat16) for shape in SHAPES[:3]),
    *((TILES, dtype, FLOAT, 0) for dtype in (FLOAT, HALF, torch.bfloat16)),
    *((shape, HALF, FLOAT, 0) for shape in (SHAPES[-1], SPLIT, POINTS, SIXTEENS)),
    *((TILES, HALF, HALF, number) for number in NUMBERS[1:]),
]


def interpret(folder: Path, problems: list[tuple]) -> list[dict]:
    """Return the results of problems (number of the configuration, arguments, upstream) in Triton's interpreter."""
    if np.lib.NumpyVersion(np.__version__) >= "2.4.0" and triton.__version__.startswith("3.6."):
        pytest.skip(f"the interpreter of triton {triton.__version__} needs numpy < 2.4")
    torch.save(problems, folder / "in")
    command = [sys.executable, Path(__file__).with_name("interpreted.py"), folder / "in", folder / "out"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return torch.load(folder / "out")


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """Run all cases in the interpreter, in one process. Return {case: (arguments, upstream, results)}."""
    problems = [problem(shape, dtype, seed) for seed, (shape, dtype, *_) in enumerate(CASES)]
    numbered = [
        (number, {name: t if name == "x" else t.to(parameters) for name, t in arguments.items()}, upstream)
        for (_, _, parameters, number), (arguments, upstream) in zip(CASES, problems, strict=True)
    ]
    results = interpret(tmp_path_factory.mktemp("interpreted"), numbered)
    return {case: (*given, result) for case, given, result in zip(CASES, problems, results, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients_are_as_good_as_naives(case, interpreted):
    arguments, upstream, results = interpreted[case]
    dtype = upstream.dtype
    oracle = solve(block, *in_float64(arguments, upstream))
    plain = solve(naive.rdb, arguments, upstream, torch.channels_last)
    assert results.keys() == oracle.keys()
    for name, result in results.items():
        assert result.dtype == (dtype if name in ("y", "gradient of x") else case[2])
        assert_as_good_as_naive(result, oracle[name], plain[name], dtype, f"{name}, {case}")


@pytest.mark.parametrize("broken", ["x", "upstream"])
def test_nan_spreads_as_in_naive(broken, tmp_path):
    """To the output and to every gradient: a ReLU that made it zero would hide that training diverges.

    NaN in the upstream gradient may also reach the rows beside it, by products with the fusion's missing taps.
    """
    arguments, upstream = problem(TILES, torch.float16, 0)
    (arguments["x"] if broken == "x" else upstream)[0, 0, 4, 4] = float("nan")
    (results,) = interpret(tmp_path, [(0, arguments, upstream)])
    plain = solve(naive.rdb, arguments, upstream)
    for name, result in results.items():
        found, expected = result.isnan(), plain[name].isnan()
        assert bool((found >= expected).all()), name
        if broken == "x":  # whose gradient is finite: torch's ReLU passes what belongs to a NaN
            torch.testing.assert_close(result, plain[name], rtol=0.05, atol=0.05, equal_nan=True)
    seen = results["y" if broken == "x" else "gradient of x"].isnan()
    assert 0 < int(seen.sum()) < seen.numel()


@pytest.fixture
def configs():
    """The kernels' configurations; what a test restricts or times is forgotten afterwards."""
    triton_planes.configs.clear()
    yield triton_planes.configs
    triton_planes.configs.clear()


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Compile kernels for Hopper instead of launching them. Return the list of (name, kernel)."""
    kernels = []

    def build(name, grid, *args, **config):
        kernels.append((name, triton_planes.kernel(name).warmup(*args, grid=grid, **config)))

    monkeypatch.setattr(triton_planes, "launch", build)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", Hopper())
    return kernels


def assembled(kernel, folder):
    """Assemble a kernel. Return its registers and spilled bytes per thread, and all of ptxas's report."""
    (folder / "ptx").write_text(kernel.asm["ptx"])
    from triton.backends.nvidia.compiler import get_ptxas

    command = [get_ptxas(90).path, "-v", "--gpu-name", "sm_90a", folder / "ptx", "-o", folder / "cubin"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, stores, loads = (
        int(re.search(rf"(\d+) {what}", report)[1]) for what in ("registers", "bytes spill stores", "bytes spill loads")
    )
    return registers, stores + loads, report


BUILDS = [  # number of the configuration, dtype, G0, G
    (number, *build)
    for build in ((HALF, 64, 64), (torch.bfloat16, 64, 64), (HALF, 70, 37), (HALF, 64, 32))
    for number in NUMBERS
]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "dtype", "g0", "g"), BUILDS)
def test_kernels_for_hopper_fit_and_use_its_matrix_units(number, dtype, g0, g, compiled, configs, tmp_path):
    configs.restrict(number)
    arguments, upstream = problem((2, g0, g, 2, 8, 8), torch.float32, 0)
    arguments["x"] = arguments["x"].to(dtype)
    solve(triton_planes.rdb, arguments, upstream.to(dtype), torch.channels_last)
    assert {name for name, _ in compiled} == set(CANDIDATES)
    for name, kernel in {id(kernel): (name, kernel) for name, kernel in compiled}.values():
        what = f"{name} {configs.candidates[name][0]}"
        registers, spilled, report = assembled(kernel, tmp_path)
        products = Counter(re.findall(r"wgmma\.mma_async\S*?\.(m\d+n\d+k\d+)", kernel.asm["ptx"]))
        shared = kernel.metadata.shared
        print(f"{what}: {registers} registers, {spilled} B spilled, {shared} B shared, {dict(products)}")
        assert spilled == 0, f"{what}: {report}"
        assert shared <= SHARED_MEMORY, what
        assert "serialized" not in report, f"{what}: {report}"  # wgmmas that wait for each other
        shuffles = kernel.asm["ptx"].count("shfl.")
        assert shuffles <= 64, f"{what}: {shuffles} shuffles"  # an epilogue that shifts rows between threads has 500
        if g == 64 and name not in ("to_planes", "reduce"):  # narrower layers have too few channels for wgmma's 64 rows
            assert products, what


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 64, 64, 3, 33, 20), TILES], ids=str)
@pytest.mark.parametrize("number", NUMBERS)
def test_every_configuration_on_a_card(number, shape, dtype, seed, configs):
    configs.restrict(number)
    check(IMPLS["triton_planes"], torch.channels_last, shape, dtype, seed)


def test_wider_layers_are_refused():
    arguments, upstream = problem((1, 8, 65, 1, 2, 2), torch.float16, 0)
    with pytest.raises(UserError, match=r"--rdb triton_planes: .* growth rates up to 64, not 65; "):
        solve(triton_planes.rdb, arguments, upstream)


def test_without_triton_the_impl_says_so():
    program = (
        "import sys; sys.modules['triton'] = None; from rdn_fast.rdb import triton_planes as t; print(t.missing())"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert "needs the package triton" in ended.stdout, ended.stderr


@pytest.mark.parametrize("error", ["ImportError", "OSError"])
def test_a_triton_that_cannot_be_imported_is_left_out(error, monkeypatch, tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(f"raise {error}('libtriton.so:\\nno such file')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    expected = "needs the package triton, whose import fails: libtriton.so: no such file"
    assert refusal(IMPLS["triton_planes"], torch.device("cuda"), torch.float16, training=True) == expected
