"""Every impl of rdb.IMPLS against the paper's equations in float64, and the rules of selecting one."""

import functools
import statistics
from itertools import product
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from bench import baseline
from bench.cases.rdb import comparison
from bench.models import RDN_B
from bench.parity import SLACK, Problem, assert_as_good_as_naive, assert_same_in_float64, relative_error
from rdn_fast import devices, rdb
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from rdn_fast.precision import Precision
from rdn_fast.rdb import IMPLS, Impl, naive, refusal, select, summed

CPU = torch.device("cpu")
DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else CPU  # of the impls
FLOAT32 = torch.float32
LOW = (torch.bfloat16, torch.float16)

# batch, G0, G, C, H, W: H and W are multiples of nothing, G != G0, and there are enough channels for rounding errors to
# average out. The fourth has one pixel per image: padding everywhere. The last has more channels than a vector or tile.
SHAPES = (
    (1, 18, 13, 1, 5, 7),
    (1, 13, 18, 2, 7, 5),
    (2, 26, 19, 3, 3, 11),
    (24, 27, 22, 3, 1, 1),
    (1, 70, 37, 2, 5, 9),
)

FORMATS = dict.fromkeys([torch.contiguous_format, devices.memory_format(DEVICE)])
CASES = [
    pytest.param((impl, memory_format, dtype), id=f"{impl.name}-{memory_format}-{dtype}".replace("torch.", ""))
    for impl in IMPLS.values()
    if DEVICE.type in impl.devices
    for memory_format in FORMATS
    for dtype in (FLOAT32, *LOW)
    if dtype in impl.dtypes
]


@pytest.fixture
def case(request):
    """Return (impl, memory_format, dtype), or skip the test where the impl cannot run."""
    impl, memory_format, dtype = request.param
    if reason := refusal(impl, DEVICE, dtype, impl.trains):
        pytest.skip(f"{impl.name} {reason}")
    return impl, memory_format, dtype


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Fill torch.empty with NaN, so that reading memory that was never written cannot pass."""
    before, filled = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)
    torch.utils.deterministic.fill_uninitialized_memory = filled


def conv3x3(x, w, b):
    """Zero-padded 3 x 3 correlation as a sum over the nine taps."""
    height, width = x.shape[2:]
    padded = x.new_zeros(x.shape[0], x.shape[1], height + 2, width + 2)
    padded[:, :, 1:-1, 1:-1] = x
    taps = (
        torch.einsum("oi,bihw->bohw", w[:, :, i, j], padded[:, :, i : i + height, j : j + width])
        for i, j in product(range(3), repeat=2)
    )
    return sum(taps) + b[:, None, None]


def block(x, conv_w, conv_b, fuse_w, fuse_b):
    """Equations 5 to 8 of arXiv:1802.08797; a product with a concatenation is a sum of products with its parts."""
    features = [x]

    def parts(w):
        return torch.split(w, [f.shape[1] for f in features], dim=1)

    for w, b in zip(conv_w, conv_b, strict=True):
        total = (
            sum(conv3x3(f, part, torch.zeros_like(b)) for f, part in zip(features, parts(w), strict=True))
            + b[:, None, None]
        )
        features.append(torch.where(total > 0, total, torch.zeros_like(total)))
    fused = sum(
        torch.einsum("oi,bihw->bohw", part[:, :, 0, 0], f) for f, part in zip(features, parts(fuse_w), strict=True)
    )
    return x + fused + fuse_b[:, None, None]


def problem(shape, dtype, seed):
    """Return the arguments of a block in `dtype`, {name: tensor}, and a gradient of its output: a parity.Problem."""
    batch, g0, g, layers, height, width = shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = baseline.RDB(g0, g, layers)
        for layer in module.layers:
            torch.nn.init.kaiming_normal_(layer.conv.weight, nonlinearity="relu")
        torch.nn.init.kaiming_normal_(module.lff.weight, nonlinearity="linear")
        torch.nn.init.normal_(module.lff.bias, std=0.3)
        made = Problem(module, torch.randn(batch, g0, height, width), dtype, training=False)
    arguments = {"x": made.x}
    for j in range(layers):
        weight, bias = (made.state[f"layers.{j}.conv.{name}"] for name in ("weight", "bias"))
        arguments |= {f"conv_w[{j}]": weight, f"conv_b[{j}]": bias}
    return arguments | {"fuse_w": made.state["lff.weight"], "fuse_b": made.state["lff.bias"]}, made.upstream


def solve(function, arguments, upstream, memory_format=torch.contiguous_format, trains=True, device=CPU):
    """Return {"y": output, "gradient of x": ..., ...} of a block function; gradients only if it trains."""

    def leaf(tensor):
        tensor = tensor.detach().to(device)
        tensor = tensor.clone(memory_format=memory_format if tensor.dim() == 4 else torch.contiguous_format)
        return tensor.requires_grad_(trains)

    leaves = {name: leaf(tensor) for name, tensor in arguments.items()}
    lists = [[tensor for name, tensor in leaves.items() if name.startswith(prefix)] for prefix in ("conv_w", "conv_b")]
    y = function(leaves["x"], *lists, leaves["fuse_w"], leaves["fuse_b"])
    results = {"y": y.detach().clone()}
    if trains:
        y.backward(upstream.to(device).clone(memory_format=memory_format))
        results |= {f"gradient of {name}": tensor.grad for name, tensor in leaves.items()}
    return results


def in_float64(arguments, upstream):
    return {name: tensor.double() for name, tensor in arguments.items()}, upstream.double()


def check(impl, memory_format, shape, dtype, seed):
    """Fail unless the impl's output and gradients are as good as naive's on a random problem."""
    arguments, upstream = problem(shape, dtype, seed)
    oracle = solve(block, *in_float64(arguments, upstream))
    plain = solve(naive.rdb, arguments, upstream, memory_format, device=DEVICE)
    for name, result in solve(impl.module.rdb, arguments, upstream, memory_format, impl.trains, DEVICE).items():
        what = f"{impl.name}, {name}, shape {shape}, seed {seed}"
        assert result.dtype == dtype, f"{what}: is {result.dtype}"
        assert_as_good_as_naive(result, oracle[name], plain[name], dtype, what)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_naive_is_the_papers_equations_in_float64(shape, seed):
    arguments, upstream = in_float64(*problem(shape, torch.float32, seed))
    oracle = solve(block, arguments, upstream)
    for name, result in solve(naive.rdb, arguments, upstream).items():
        assert_same_in_float64(result, oracle[name], f"{name}, seed {seed}")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", CASES, indirect=True)
def test_output_and_gradients_are_as_good_as_naives(case, shape, seed):
    impl, memory_format, dtype = case
    check(impl, memory_format, shape, dtype, seed)


@pytest.mark.parametrize(
    ("dtype", "problems"),
    [
        (torch.bfloat16, 1),
        pytest.param(torch.bfloat16, 5, marks=pytest.mark.slow),
        pytest.param(FLOAT32, 2, marks=pytest.mark.slow),
        pytest.param(torch.float16, 1, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_block_of_rdn_b_is_as_good_as_naives(dtype, problems, seed):
    """A wide block, with torch's initial weights: many ReLUs that rounding may flip. The benchmarks check the same."""
    for i in range(problems):
        torch.manual_seed(seed + i)
        for entry in comparison(True, RDN_B, (2, 32, 32), DEVICE, dtype).entries:
            if entry.recipe != "impl compiled":  # it takes minutes
                entry.build().check()


def test_summed_refuses_bf16():
    """Its parts flip ReLUs: their rounding errors stay where the parts cancel."""
    arguments, upstream = problem(SHAPES[0], torch.bfloat16, 0)
    with pytest.raises(UserError, match=r"--rdb summed: computes in one of float32, float16 on .*, not in bfloat16"):
        solve(IMPLS["summed"].rdb, arguments, upstream)
    with pytest.raises(UserError, match="summed computes in float32, float16 only, not in bfloat16"):
        select("summed", CPU, torch.bfloat16, training=False)


def test_summed_adds_the_residuals_gradient_last(seed):
    """Where that is the largest, the gradient of x has less of an error than naive's; added first, it had 1.8 times."""
    arguments, upstream = problem((2, 32, 32, 8, 9, 11), torch.float16, seed)
    arguments["fuse_w"] /= 4
    oracle = solve(block, *in_float64(arguments, upstream))["gradient of x"]
    own, plain = (solve(function, arguments, upstream)["gradient of x"] for function in (summed.rdb, naive.rdb))
    assert relative_error(own, oracle) < relative_error(plain, oracle)


def signs_flipped(parts: int, dtype: torch.dtype) -> int:
    """Return how many sums over 256 channels get another sign than in float64, if `parts` of them are rounded alone."""
    x, w = torch.randn(2, 256, 32, 32, dtype=dtype), torch.randn(64, 256, 3, 3, dtype=dtype) / 48
    pairs = zip(x.chunk(parts, dim=1), w.chunk(parts, dim=1), strict=True)
    total = sum(F.conv2d(*pair, padding=1).float() for pair in pairs)
    return int((total.sign() != F.conv2d(x.double(), w.double(), padding=1).sign()).sum())


def test_rounded_parts_flip_signs_in_bf16(seed):
    """The reason why summed leaves bf16 out, on a convolution alone."""
    torch.manual_seed(seed)
    whole, four = signs_flipped(1, torch.bfloat16), signs_flipped(4, torch.bfloat16)
    assert four > 20 + 8 * whole


def three_percent_off(*arguments):
    return 1.03 * naive.rdb(*arguments)


def layer_left_out(x, conv_w, conv_b, fuse_w, fuse_b):
    """The fusion does not see the last layer."""
    seen = torch.ones_like(fuse_w)
    seen[:, -conv_w[-1].shape[0] :] = 0
    return naive.rdb(x, conv_w, conv_b, fuse_w * seen, fuse_b)


def gradient_lost(x, conv_w, conv_b, fuse_w, fuse_b):
    return naive.rdb(x, conv_w, [b.detach() + 0 * b for b in conv_b], fuse_w, fuse_b)


def corner_not_written(*arguments):
    y = naive.rdb(*arguments)
    buffer = torch.empty_like(y)
    written = torch.ones_like(y, dtype=torch.bool)
    written[0, 0, 0, 0] = False
    return torch.where(written, y, buffer)


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("fault", [three_percent_off, layer_left_out, gradient_lost, corner_not_written])
def test_the_check_itself_notices_faults(fault, dtype, seed):
    impl = Impl("faulty", SimpleNamespace(rdb=fault), (DEVICE.type,), (dtype,), True, "for tests")
    with pytest.raises(AssertionError, match=r"faulty, .*relative error"):
        check(impl, torch.contiguous_format, SHAPES[2], dtype, seed)


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_arguments_are_not_changed(case, seed):
    impl, memory_format, dtype = case
    arguments, _ = problem(SHAPES[1], dtype, seed)
    given = {
        name: tensor.to(DEVICE, memory_format=memory_format if tensor.dim() == 4 else torch.preserve_format)
        for name, tensor in arguments.items()
    }
    copies = {name: tensor.clone() for name, tensor in given.items()}
    lists = [[tensor for name, tensor in given.items() if name.startswith(prefix)] for prefix in ("conv_w", "conv_b")]
    with torch.inference_mode():
        impl.module.rdb(given["x"], *lists, given["fuse_w"], given["fuse_b"])
    for name, tensor in given.items():
        assert torch.equal(tensor, copies[name]), f"{impl.name} changes {name} (seed {seed})"


@pytest.mark.parametrize("impl", IMPLS.values(), ids=lambda impl: impl.name)
def test_arguments_that_an_impl_was_not_made_for_are_refused(impl, seed):
    """`python -m tests.campaign --kinds dtypes` tries all of them."""
    arguments, _ = problem(SHAPES[0], torch.float64, seed)

    def compute(dtypes, device=CPU):
        x, w, b, fuse_w, fuse_b = (
            tensor.to(device, dtype) for tensor, dtype in zip(arguments.values(), dtypes, strict=True)
        )
        return impl.rdb(x, [w], [b], fuse_w, fuse_b)

    own = [impl.dtypes[0]] * 5
    for dtypes, device in (([torch.int32] * 5, CPU), ([torch.float64, *own[1:]], CPU), (own, torch.device("meta"))):
        with pytest.raises(UserError, match=rf"^--rdb {impl.name}: computes in one of .*; choose another --rdb$"):
            compute(dtypes, device)


@pytest.mark.parametrize("impl", IMPLS.values(), ids=lambda impl: impl.name)
def test_tensors_that_make_no_block_are_refused(impl, seed):
    """Pictures without pixels, too: every impl would raise an error of its own, and winograd's C sees no shapes."""
    here = Impl(impl.name, impl.module, ("cpu",), (FLOAT32,), impl.trains, "for tests")
    arguments, _ = problem(SHAPES[2], FLOAT32, seed)

    def compute(name, change):
        given = arguments | {name: change(arguments[name])}
        lists = [[given[f"conv_{kind}[{j}]"] for j in range(3)] for kind in "wb"]
        return here.rdb(given["x"], *lists, given["fuse_w"], given["fuse_b"])

    for size in ((2, 26, 0, 11), (2, 26, 3, 0), (0, 26, 0, 0), (2, 0, 3, 11), (26, 3, 11)):
        with pytest.raises(ValueError, match=rf"x \[B, G0, H, W\] with pixels, not \[{', '.join(map(str, size))}\]"):
            compute("x", lambda x, size=size: x.new_zeros(size))
    for name, tensor in arguments.items():
        for dim in range(1 if name == "x" else 0, 2 if name == "x" else tensor.dim()):
            with pytest.raises(ValueError, match=r"the weights' shapes are .*, a dense block's would be "):
                compute(name, lambda tensor, dim=dim: tensor.narrow(dim, 0, tensor.shape[dim] - 1))


def test_a_model_refuses_pictures_without_pixels():
    model = RDN(ModelConfig(num_features=4, growth_rate=3, num_blocks=1, num_layers=1), "naive")
    with pytest.raises(ValueError, match=r"no pixels: \[1, 3, 0, 5\]"):
        model(torch.zeros(1, 3, 0, 5))


def train(name, dtype, seed):
    """Train a small RDN for 32 steps with this impl and compute dtype. Return (losses, all weights) in float64."""
    torch.manual_seed(seed)
    model = RDN(ModelConfig(num_features=16, growth_rate=12, num_blocks=2, num_layers=3), name)
    device, parameters = (CPU, dtype) if dtype == torch.float64 else (DEVICE, FLOAT32)
    model.to(device, parameters, memory_format=torch.channels_last)
    optimizer = devices.adam(model.parameters(), device, 1e-3, 0.0)
    losses = []
    with model.computing(Precision("O1", dtype, parameters)):
        for _ in range(32):
            hr = torch.rand(2, 3, 18, 14).to(device, parameters)
            optimizer.zero_grad()
            loss = F.l1_loss(model(F.avg_pool2d(hr, 2)).to(hr.dtype), hr)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    weights = torch.cat([p.detach().cpu().double().flatten() for p in model.parameters()])
    return torch.tensor(losses, dtype=torch.float64), weights


@functools.cache
def trained(name, dtype, seed):
    return train(name, dtype, seed)


def check_32_steps(name, dtype):
    """Compare losses and weights with training in float64, by the median error of five runs.

    A ReLU or a step of Adam whose sign is decided by rounding alone now and then carries a single run away.
    """

    def errors(impl):
        """Return the relative errors of the losses and of the weights, each of five runs."""
        runs = [zip(trained(impl, dtype, i), trained("naive", torch.float64, i), strict=True) for i in range(5)]
        return zip(*([relative_error(*pair) for pair in run] for run in runs), strict=True)

    for what, own, plain in zip(("losses", "weights"), errors(name), errors("naive"), strict=True):
        bound = 2 * statistics.median(plain) + SLACK[dtype]
        assert statistics.median(own) <= bound, f"{name}, {what}: {own}, naive: {plain}"


@pytest.mark.parametrize("dtype", [FLOAT32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [i.name for i in IMPLS.values() if DEVICE.type in i.devices and i.name != "naive"])
def test_32_steps_end_where_naive_ends(name, dtype):
    if reason := refusal(IMPLS[name], DEVICE, dtype, True):
        pytest.skip(f"{name} {reason}")
    check_32_steps(name, dtype)


def test_impls_declare_themselves():
    for name, impl in IMPLS.items():
        assert impl.name == name
        assert impl.devices
        assert set(impl.devices) <= {"cpu", "cuda", "npu"}
        assert set(impl.dtypes) <= {FLOAT32, torch.float64, *LOW}
        assert impl.why


@pytest.fixture
def table(monkeypatch):
    """Replace the table: four impls cannot train on a CPU in float32, each for its own reason, and two can."""
    poor = SimpleNamespace(rdb=naive.rdb, missing=lambda: "needs a moon")
    impls = (
        Impl("elsewhere", naive, ("cuda", "npu"), (FLOAT32,), True, "for tests"),
        Impl("narrow", naive, ("cpu",), LOW, True, "for tests"),
        Impl("poor", poor, ("cpu",), (FLOAT32,), True, "for tests"),
        Impl("forward_only", naive, ("cpu",), (FLOAT32,), False, "for tests"),
        Impl("first", naive, ("cpu", "cuda"), (FLOAT32,), True, "for tests"),
        Impl("second", naive, ("cpu",), (FLOAT32,), True, "for tests"),
    )
    monkeypatch.setattr(rdb, "IMPLS", {impl.name: impl for impl in impls})


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("name", "training", "reason"),
    [
        ("nonsense", False, "nonsense is no implementation"),
        ("elsewhere", False, "elsewhere runs on cuda, npu only"),
        ("narrow", False, "narrow computes in bfloat16, float16 only, not in float32"),
        ("poor", True, "poor needs a moon"),
        ("forward_only", True, "forward_only has no backward pass"),
    ],
)
def test_select_refuses_aloud_and_names_what_can_run(name, training, reason):
    with pytest.raises(UserError) as caught:
        select(name, CPU, FLOAT32, training)
    message = str(caught.value)
    assert f"--rdb {reason}" in message
    assert message.endswith("first, second" if training else "forward_only, first, second")


@pytest.mark.usefixtures("table")
def test_select_returns_the_impl_of_that_name():
    assert select("second", CPU, FLOAT32, True).name == "second"
    assert select("forward_only", CPU, FLOAT32, False).name == "forward_only"


def test_model_with_an_unknown_impl_is_a_user_error():
    model = RDN(ModelConfig(num_features=4, growth_rate=3, num_blocks=1, num_layers=1), rdb="nonsense")
    with pytest.raises(UserError, match="nonsense"):
        model(torch.zeros(1, 3, 4, 4))
