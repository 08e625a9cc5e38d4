"""output_conv: its results in Triton's interpreter, its machine code for Hopper, and where the model takes it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from runs import ROOT
from torch.utils._python_dispatch import TorchDispatchMode

from bench.parity import assert_as_good_as_naive
from rdn_fast.config import ModelConfig
from rdn_fast.devices import select
from rdn_fast.model import RDN
from rdn_fast.precision import Precision
from rdn_fast.rdb import trial, tuning
from rdn_fast.tail import output_conv as tail
from rdn_fast.tail import output_trial

triton = pytest.importorskip("triton")

CPU, HALF, FLOAT, LAST = torch.device("cpu"), torch.float16, torch.float32, torch.channels_last
# batch, C, H, W
SHAPES = [(2, 64, 15, 30), (1, 64, 6, 14), (3, 20, 7, 1), (5, 6, 1, 1), (1, 48, 2, 33)]
CASES = [(shape, dtype) for shape in SHAPES for dtype in tail.LOW]
NAMES = "y", "gradient of x", "gradient of weight", "gradient of bias"


def problem(shape: tuple, dtype: torch.dtype, seed: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return [x in dtype, weight, bias], float32, and the gradient of y, in memory formats that the seed chooses."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, height, width = shape
    sizes = shape, (3, channels, 3, 3), (batch, 3, height, width)
    x, weight, upstream = (
        torch.randn(size, generator=generator).to(memory_format=LAST if seed >> i & 1 else torch.contiguous_format)
        for i, size in enumerate(sizes)
    )
    return [x.to(dtype), weight * (9 * channels) ** -0.5, torch.randn(3, generator=generator)], upstream / 1000


def solve(conv, arguments, upstream) -> dict[str, torch.Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in arguments]
    y = conv(*leaves)
    return dict(zip(NAMES, (y.detach(), *torch.autograd.grad(y, leaves, upstream)), strict=True))


def plain(x, weight, bias):
    """Compute what the kernels replace."""
    return F.conv2d(x.to(weight.dtype), weight, bias, padding=1)


def check(arguments, upstream, results, what) -> None:
    """Hold the results against float64, with the bounds of float32; of x's own dtype where they are rounded to that."""
    oracle = solve(plain, [tensor.double() for tensor in arguments], upstream.double())
    before = solve(plain, arguments, upstream)
    for name, result in results.items():
        assert (result.dtype, result.shape) == (before[name].dtype, before[name].shape)
        assert_as_good_as_naive(result, oracle[name], before[name], result.dtype, f"{name}, {what}")


def interpret(folder: Path, problems: list[tuple]) -> list[dict]:
    """Return the results of problems in Triton's interpreter."""
    needs_a_numpy_that_it_knows()
    torch.save(problems, folder / "in")
    command = [sys.executable, Path(__file__).with_name("interpreted_output.py"), folder / "in", folder / "out"]
    folders = ROOT, ROOT / "tests", ROOT / "tests" / "rdb", os.environ.get("PYTHONPATH")
    path = os.pathsep.join(map(str, filter(None, folders)))
    ended = subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return torch.load(folder / "out")


def needs_a_numpy_that_it_knows() -> None:
    if np.lib.NumpyVersion(np.__version__) >= "2.4.0" and triton.__version__.startswith("3.6."):
        pytest.skip(f"the interpreter of triton {triton.__version__} needs numpy < 2.4")


@pytest.mark.slow
def test_output_and_gradients_are_as_good_as_in_float32(seed, tmp_path):
    """Fresh memory holds NaN."""
    problems = [problem(shape, dtype, seed + i) for i, (shape, dtype) in enumerate(CASES)]
    for case, given, results in zip(CASES, problems, interpret(tmp_path, problems), strict=True):
        check(*given, results, case)


@pytest.mark.slow
def test_what_is_not_finite_stays_so(tmp_path):
    """Otherwise a loss scale that is too large, or a run that diverges, would go unseen."""
    problems = [problem(SHAPES[0], HALF, 0) for _ in range(3)]
    (broken, _), (_, upstream), (_, huge) = problems
    broken[0][1, 3, 4, 5] = float("nan")
    upstream[1, 2, 4, 5] = float("nan")
    huge[1, 2, 4, 5] = float("inf")
    for number, (given, results) in enumerate(zip(problems, interpret(tmp_path, problems), strict=True)):
        for name, right in solve(plain, *given).items():
            lost = ~right.isfinite()
            assert bool((results[name].isfinite() <= ~lost).all()), (number, name)
            if name in ("y", "gradient of x"):  # nothing else is lost
                torch.testing.assert_close(results[name][~lost], right[~lost], rtol=0.01, atol=1e-5)
        assert not bool(results["gradient of weight"].isfinite().all())


@pytest.mark.slow
def test_the_trial_passes_in_the_interpreter(monkeypatch, tmp_path):
    needs_a_numpy_that_it_knows()
    monkeypatch.setattr(tuning, "cache_folder", lambda: tmp_path)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert trial.flaw_on(CPU, "the last", "rdn_fast.tail.output_trial", "1") is None
    assert "the last" in (tmp_path / "tuning.json").read_text()  # it was not left undecided


@pytest.mark.parametrize("dtype", tail.LOW, ids=str)
def test_the_trial_notices_faults(dtype):
    told = lambda conv: output_trial.flaw(CPU, conv, dtype, (1, 16, 9, 8))  # noqa: E731
    doubled = lambda x, w, b: plain(x, w, b) + plain(x, w.detach(), b) - plain(x, w, b).detach()  # noqa: E731
    assert told(plain) is None
    assert told(lambda x, w, b: plain(x, w, b) * 1.001) == "the output is wrong by 0.001"
    assert told(lambda x, w, b: plain(x, w.half().float(), b)).startswith("the output is wrong by ")
    assert told(doubled) == "the gradient of x is wrong by 1"
    assert told(lambda x, w, b: plain(x, w, b) * float("nan")) == "the output is wrong by nan"
    assert told(lambda *_: F.conv2d(torch.ones(1), 3)).startswith("TypeError: ")


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "channels"), [(HALF, 64), (torch.bfloat16, 64), (HALF, 20)])
def test_kernels_for_hopper_fit(dtype, channels, monkeypatch, tmp_path):
    from hopper import SHARED_MEMORY, Hopper
    from test_triton import assembled

    built = []
    build = lambda name, grid, *args, **config: built.append(  # noqa: E731
        (name, tail.kernel(name).warmup(*args, grid=grid, **config))
    )
    monkeypatch.setattr(tail, "launch", build)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", Hopper())
    arguments, upstream = problem((2, channels, 8, 8), dtype, 7)
    solve(tail.output_conv, arguments, upstream)
    assert [name for name, _ in built] == ["forward", "backward"]
    for name, kernel in built:
        registers, spilled, report = assembled(kernel, tmp_path)
        print(f"{name} {dtype} {channels}: {registers} registers, {spilled} B spilled, {kernel.metadata.shared} B")
        assert spilled == 0, report
        assert kernel.metadata.shared <= SHARED_MEMORY
        assert "serialized" not in report, report
        assert kernel.asm["ptx"].count("mma"), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_a_card(case, seed):
    shape, dtype = case
    arguments, upstream = problem(shape, dtype, seed)
    results = solve(tail.output_conv, [tensor.to("cuda") for tensor in arguments], upstream.to("cuda"))
    check(arguments, upstream, {name: result.cpu() for name, result in results.items()}, case)


class Launches(TorchDispatchMode):
    """Names of what would be launched on a card, in order."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.names: list[str] = []
        monkeypatch.setattr(tail, "launch", lambda name, *_, **__: self.names.append(name))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not (function.is_view or "empty" in function.__name__ or function.__name__ == "detach.default"):
            self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("memory_format", [LAST, torch.contiguous_format])
def test_one_kernel_each_way_and_one_sum(memory_format, monkeypatch):
    (x, weight, bias), upstream = problem(SHAPES[0], HALF, 7)
    leaves = x, weight.to(memory_format=memory_format), bias
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    with Launches(monkeypatch) as forward:
        y = tail.output_conv(*leaves)
    with Launches(monkeypatch) as backward:
        y.backward(upstream)
    assert forward.names == ["forward"]
    assert backward.names == ["backward", "sum.dim_IntList", "copy_.default", "_to_copy.default"]
    assert [leaf.grad.stride() for leaf in leaves] == [leaf.stride() for leaf in leaves]


def model_of(**settings) -> RDN:
    return RDN(ModelConfig(num_features=6, growth_rate=4, num_blocks=1, num_layers=2, **settings), "naive").to(
        memory_format=LAST
    )


@pytest.fixture
def card(monkeypatch):
    """Take the CPU for a card on which the kernels work. Return what the kernels were given."""
    given = []

    def stand_in(x, weight, bias):
        given.append((x.dtype, weight.dtype))
        return plain(x, weight, bias)

    monkeypatch.setattr(tail, "is_current_gpu", lambda device: device == CPU)
    monkeypatch.setattr(tail, "missing", lambda card: None)
    monkeypatch.setattr(tail, "output_conv", stand_in)
    return given


def results_of(model, x) -> list[torch.Tensor]:
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))]


@pytest.mark.parametrize(("scale", "tail_kind"), [(2, "shuffle"), (3, "shuffle"), (4, "shuffle"), (4, "single")])
@pytest.mark.parametrize("low", tail.LOW, ids=str)
def test_the_model_at_o1_takes_it_and_is_the_same(scale, tail_kind, low, card, monkeypatch, seed):
    torch.manual_seed(seed)
    model, x = model_of(scale=scale, tail=tail_kind), torch.rand(2, 3, 6, 5)
    Precision("O1", low, FLOAT).apply(model)
    found = results_of(model, x)
    assert card == [(low, FLOAT)]
    monkeypatch.setattr(tail, "is_current_gpu", lambda device: False)
    assert all(map(torch.equal, found, results_of(model, x)))
    assert len(card) == 1


def test_where_it_is_not_taken(card, monkeypatch):
    model, x = model_of(), torch.rand(1, 3, 6, 5)
    bf16 = torch.bfloat16
    for precision in (Precision("O0", FLOAT, FLOAT), Precision("O2", bf16, bf16), Precision("O1", bf16, FLOAT, FLOAT)):
        precision.apply(model)
        model(x)
    Precision("O1", bf16, FLOAT).apply(model)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        model(x)
    model(x[:0])
    wide = RDN(ModelConfig(num_features=6, growth_rate=4, num_blocks=1, num_layers=1, upsample_channels=65), "naive")
    for other in (wide, model_of(tail="espcn")):
        Precision("O1", bf16, FLOAT).apply(other)
        other(x)
    assert card == []
    model(x)
    assert len(card) == 1


@pytest.mark.slow
def test_what_torch_compiles_or_traces_has_a_convolution(card):
    model, x = model_of(), torch.rand(1, 3, 6, 5)
    Precision("O1", torch.bfloat16, FLOAT).apply(model)
    torch.compile(model, backend="eager")(x)
    torch.jit.trace(model, x, check_trace=False)
    assert card == []


def test_maps_of_a_cpu_ask_no_driver(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: pytest.fail("a context is opened"))
    monkeypatch.setattr(select, "count", lambda kind: 1)
    model = model_of()
    Precision("O1", torch.bfloat16, FLOAT).apply(model)
    assert model(torch.rand(1, 3, 6, 5)).dtype == FLOAT


def test_without_triton_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(tail, "triton_missing", lambda: "needs the package triton")
    monkeypatch.setattr(tail, "is_current_gpu", lambda device: device == CPU)
    tail.missing.cache_clear()
    model = model_of()
    Precision("O1", torch.bfloat16, FLOAT).apply(model)
    try:
        assert [model(torch.rand(1, 3, 6, 5)).dtype for _ in range(2)] == [FLOAT] * 2
    finally:
        tail.missing.cache_clear()
    assert capsys.readouterr().out == "note: the last convolution is PyTorch's: its kernel needs the package triton\n"


def test_on_a_card_where_its_trial_fails_one_line_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tail, "is_current_gpu", lambda device: device == CPU)
    monkeypatch.setattr(tuning, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(trial, "_run", lambda command: (1, "the output is wrong by 0.3"))
    monkeypatch.setattr(tail, "launch", lambda *_, **__: pytest.fail("launched"))
    tail.missing.cache_clear()
    trial.flaw_on.cache_clear()
    model = model_of()
    Precision("O1", torch.bfloat16, FLOAT).apply(model)
    try:
        assert [model(torch.rand(1, 3, 6, 5)).dtype for _ in range(2)] == [FLOAT] * 2
    finally:
        tail.missing.cache_clear()
        trial.flaw_on.cache_clear()
    what = "the last convolution is PyTorch's: its kernel"
    assert capsys.readouterr().out == f"note: {what} fails in a trial on this card: the output is wrong by 0.3\n"
