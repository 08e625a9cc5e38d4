"""npu_conv: its kernels as Ascend's compiler plans them, and the block computed by the compiled modules, emulated."""

import re

import pytest
import torch
import torch.nn.functional as F
from test_rdb import _poisoned_memory, block, in_float64, problem, relative_error, solve  # noqa: F401 (a fixture)

from bench.parity import assert_as_good_as_naive
from profiling import hivm, npu_errors, npu_reference
from rdn_fast import devices, rdb
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from rdn_fast.precision import Precision
from rdn_fast.rdb import IMPLS, LOW, Impl, naive, npu_conv, npu_conv_kernels, npu_conv_trial
from rdn_fast.rdb.npu_conv_planes import Planes

NEEDED = "needs Ascend's compiler: make setup-ascend (Python 3.11, x86-64 Linux)"
needs_package = pytest.mark.skipif(hivm.package() is None, reason=NEEDED)
CPU = torch.device("cpu")
A2, A2_20_CORES, A3 = TARGETS = "Ascend910B2", "Ascend910B3", "Ascend910_9392"
TRAINED = (64, 32, 8)  # channels of a plane, pixels of a row, rows of a tile: rdn-b on patches of 32 x 32
PLANS = [(TRAINED, target, torch.float16) for target in TARGETS]
PLANS += [(shape, A2, torch.float16) for shape in ((32, 32, 8), (64, 48, 5), (64, 256, 1), (48, 16, 16), (16, 64, 3))]
PLANS += [(TRAINED, A2, torch.bfloat16)]

VECTOR = {  # of each kernel: loads, operations and stores of the vector cores for a tile
    "layer": (2, 4, 1),  # term to float32, add, ReLU, to low precision
    "fusion": (3, 5, 1),  # term and x to float32, two adds, to low precision
    "gradient": (3, 7, 1),  # zeros, term and gate to float32, compare, add, select, to low precision
    "input_gradient": (2, 3, 1),  # term to float32, add, to low precision
}


@pytest.fixture
def emulated(monkeypatch):
    """Let launches run the compiled modules on the host."""
    if hivm.package() is None:
        pytest.skip(NEEDED)
    monkeypatch.setattr(npu_conv, "launch", npu_errors.emulate)


@pytest.fixture(params=["compiled", "plain"])
def launched(request, monkeypatch):
    """Let launches run the compiled modules, or the same computations in plain torch."""
    if request.param == "plain":
        # Instead of their text, kernels have what it is made from.
        kernels = npu_conv.npu_conv_kernels
        monkeypatch.setattr(kernels, "sums", lambda kind, k, width, rows, dtype: (kind, k, width))
        monkeypatch.setattr(kernels, "weight_gradient", lambda k, width, dtype: ("weight_gradient", k, width))
        monkeypatch.setattr(npu_conv, "launch", lambda kernel, arguments, items: npu_reference.run(*kernel, *arguments))
    else:
        request.getfixturevalue("emulated")


@needs_package
@pytest.mark.parametrize(("shape", "target", "dtype"), PLANS, ids=str)
@pytest.mark.parametrize("kind", VECTOR)
def test_the_plan_of_a_sum_is_two_loads_and_a_convolution_for_each_source(kind, shape, target, dtype):
    k, row, rows = shape
    module = hivm.compile_module(npu_conv_kernels.sums(kind, *shape, dtype), target)
    assert hivm.missing_functions(module) == []
    assert "limit_sub_block_id0" not in module  # each of the two vector cores does half of a tile
    cube, vector = hivm.parse(module).values()
    assert [count(cube, name) for name in ("nd2nz", "conv2d_group", "fixpipe", "")] == [2, 1, 1, 4]
    calls = tuple(count(vector, name) for name in ("load_gm", ("v", "broadcast"), "store_ubuf"))
    assert calls == VECTOR[kind]
    taps = 1 if kind == "fusion" else 9
    tile = (rows + (2 if taps == 9 else 0)) * row * k * 2
    planned, limits = hivm.buffers(cube) | hivm.buffers(vector), dict(hivm.SPACES.values())
    assert planned["L1"] == 2 * (tile + taps * k * k * 2)  # double buffers
    assert planned["L0C"] == rows * row * k * 4
    assert all(planned[name] <= limits[name] for name in ("L1", "L0C", "UB"))


@needs_package
@pytest.mark.parametrize(("shape", "target", "dtype"), PLANS, ids=str)
def test_the_plan_of_a_weight_gradient_is_five_loads_for_six_products(shape, target, dtype):
    k, row, _ = shape
    module = hivm.compile_module(npu_conv_kernels.weight_gradient(k, row, dtype), target)
    assert hivm.missing_functions(module) == []
    (cube,) = hivm.parse(module).values()  # no vector core
    assert [count(cube, name) for name in ("nd2nz", "mma_tile", "fixpipe", "")] == [5, 6, 6, 17]
    assert hivm.buffers(cube) == {"L1": 2 * 5 * npu_conv_kernels.STEP * k * 2, "L0C": 6 * k * k * 4}


def count(function, names) -> int:
    return sum(number for name, number in hivm.calls(function).items() if name.startswith(names))


# batch, G0, G, C, H, W: G0 and G with each K; one column of zeros, none, several; tiles that overlap; a pixel.
BLOCKS = (
    (2, 32, 16, 3, 5, 7),
    (1, 64, 64, 2, 9, 19),
    (3, 48, 96, 2, 17, 5),
    (2, 32, 32, 2, 11, 48),
    (24, 16, 16, 1, 1, 1),
)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_the_block_and_its_gradients_are_as_good_as_naives(launched, shape, dtype, seed):
    arguments, upstream = problem(shape, dtype, seed)
    oracle, plain = solve(block, *in_float64(arguments, upstream)), solve(naive.rdb, arguments, upstream)
    for name, result in solve(npu_conv.rdb, arguments, upstream, torch.channels_last).items():
        assert result.dtype == dtype, name
        assert_as_good_as_naive(result, oracle[name], plain[name], dtype, f"{name}, shape {shape}")


def test_gradients_are_right_on_any_number_of_cores(launched, seed, monkeypatch):
    monkeypatch.setitem(vars(npu_conv.toolchain), "cores", 1 + seed % 40)
    arguments, upstream = problem((7, 16, 32, 3, 6, 16), torch.float16, seed)
    oracle, plain = solve(block, *in_float64(arguments, upstream)), solve(naive.rdb, arguments, upstream)
    for name, result in solve(npu_conv.rdb, arguments, upstream).items():
        assert_as_good_as_naive(result, oracle[name], plain[name], torch.float16, name)


@pytest.mark.parametrize(("cores", "shares"), [(24, [8, 4, 8, 2]), (20, [6, 10, 11, 5])])
def test_pixels_are_split_so_that_the_cores_end_together(cores, shares):
    """The weight gradients of rdn-b on 64 patches, of 1 to 4 pairs of sources."""
    found = [npu_conv.splits(264, 3 * pairs, cores) for pairs in (1, 2, 3, 4)]
    assert found == shares
    for pairs, count in zip((1, 2, 3, 4), found, strict=True):
        rounds = -(-3 * pairs * count // cores)
        assert 3 * pairs * count / (rounds * cores) >= 0.9  # of the cores that have work


def test_wide_images_are_computed_in_strips(launched, seed):
    arguments, upstream = problem((1, 16, 16, 2, 2, 300), torch.float16, seed)
    oracle, plain = solve(block, *in_float64(arguments, upstream)), solve(naive.rdb, arguments, upstream)
    for name, result in solve(npu_conv.rdb, arguments, upstream).items():
        assert_as_good_as_naive(result, oracle[name], plain[name], torch.float16, name)


def test_no_images_are_computed_too(launched):
    arguments, upstream = problem((1, 16, 16, 2, 3, 4), torch.float16, 0)
    arguments["x"] = arguments["x"][:0]
    results = solve(npu_conv.rdb, arguments, upstream[:0])
    assert results["y"].shape == (0, 16, 3, 4)
    assert not any(result.any() for result in results.values())


@pytest.mark.parametrize(("g0", "g"), [(16, 24), (24, 16)])
def test_other_numbers_of_channels_are_refused(g0, g):
    arguments, upstream = problem((1, g0, g, 1, 3, 4), torch.float16, 0)
    with pytest.raises(UserError, match=f"computes multiples of 16 channels, not {g0} and {g}"):
        solve(npu_conv.rdb, arguments, upstream)


@pytest.fixture
def table(launched, monkeypatch):
    """Let npu_conv stand in the table as one for the CPU."""
    monkeypatch.setattr(npu_conv, "missing", lambda: None)
    impl = Impl("npu_conv", npu_conv, ("cpu",), LOW, True, "for tests")
    monkeypatch.setitem(rdb.IMPLS, "npu_conv", impl)


def train(name: str, dtype: torch.dtype, seed: int):
    """Train a tiny RDN for 4 steps. Return (losses, all weights) in float64."""
    torch.manual_seed(seed)
    model = RDN(ModelConfig(num_features=16, growth_rate=16, num_blocks=2, num_layers=2), name)
    parameters = dtype if dtype == torch.float64 else torch.float32
    model.to(CPU, parameters)
    optimizer = devices.adam(model.parameters(), CPU, 1e-3, 0.0)
    losses = []
    with model.computing(Precision("O1", dtype, parameters)):
        for _ in range(4):
            hr = torch.rand(2, 3, 18, 14).to(parameters)
            optimizer.zero_grad()
            loss = F.l1_loss(model(F.avg_pool2d(hr, 2)).to(hr.dtype), hr)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    weights = torch.cat([p.detach().double().flatten() for p in model.parameters()])
    return torch.tensor(losses, dtype=torch.float64), weights


def test_four_steps_end_where_naive_ends(table, seed):
    own, plain, oracle = (
        train(name, dtype, seed)
        for name, dtype in (("npu_conv", torch.float16), ("naive", torch.float16), ("naive", torch.float64))
    )
    for i, what in enumerate(("losses", "weights")):
        assert_as_good_as_naive(own[i], oracle[i], plain[i], torch.float16, what)


def test_the_trial_passes_and_notices_a_fault(emulated, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["trial", "cpu"])
    assert npu_conv_trial.main() == 0
    right = npu_conv.launch

    def with_a_fault(text, arguments, items):
        right(text, arguments, items)
        if "npu_conv_weight_gradient" in text:
            arguments[2].view(-1)[: 9 * 64 * 64] = 0

    monkeypatch.setattr(npu_conv, "launch", with_a_fault)
    assert npu_conv_trial.main() == 1
    assert re.match(r"the gradient of weights \(\d\) is wrong by ", capsys.readouterr().out)


def test_the_trial_needs_the_card(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["trial", "npu:7"])
    assert npu_conv_trial.main() == 1
    assert capsys.readouterr().out.startswith("a second process cannot use it: --device npu:7: ")


@pytest.mark.parametrize(("g0", "g", "k"), [(64, 64, 64), (64, 32, 32), (96, 48, 48), (64, 48, 16), (128, 128, 64)])
def test_planes_have_as_many_channels_as_fit(g0, g, k):
    assert Planes(1, 8, 8, g0, g, 2).k == k


def test_on_a_card_the_kernels_are_tried_in_a_process_of_their_own(monkeypatch):
    tried = []
    monkeypatch.setattr(npu_conv.metadata, "version", lambda _: "3.2.0")
    monkeypatch.setattr(npu_conv, "flaw_on", lambda *trial: tried.append(trial) or "fails in a trial")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: CPU)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setitem(vars(npu_conv.toolchain), "missing", "needs hivmc")
    assert npu_conv.missing() == "needs hivmc"
    assert not tried
    monkeypatch.setitem(vars(npu_conv.toolchain), "missing", None)
    assert npu_conv.missing() == "fails in a trial"
    ((card, name, module, version),) = tried
    assert (card, name, module) == (torch.device("cpu", 0), "--rdb npu_conv", "rdn_fast.rdb.npu_conv_trial")
    assert re.fullmatch(r"[0-9a-f]{12}, triton-ascend 3\.2\.0, CANN .*", version)


def test_the_table_has_it_for_low_precision_with_a_backward_pass():
    impl = IMPLS["npu_conv"]
    assert (impl.devices, impl.dtypes, impl.trains) == (("npu",), LOW, True)
