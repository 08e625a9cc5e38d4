"""Every row of rdb.IMPLS against the paper's equations in float64, and the rules by which a row is chosen."""

import functools
import statistics
from itertools import product
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from bench import baseline
from bench.parity import SLACK, Problem, assert_as_good_as_naive, assert_same_in_float64, relative_error
from rdn_fast import devices, rdb
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from rdn_fast.rdb import IMPLS, Impl, naive, refusal, select

CPU = torch.device("cpu")
DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else CPU  # where the rows compute
FLOAT32 = torch.float32
LOW = (torch.bfloat16, torch.float16)

# batch, G0, G, C, H, W: H and W are multiples of nothing, G != G0, and the channels are many enough for rounding errors to average
# out. The fourth is one pixel per image: padding everywhere. The last has more channels than any vector or tile.
SHAPES = (
    (1, 18, 13, 1, 5, 7),
    (1, 13, 18, 2, 7, 5),
    (2, 26, 19, 3, 3, 11),
    (24, 27, 22, 3, 1, 1),
    (1, 70, 37, 2, 5, 9),
)

FORMATS = {
    "any": (torch.contiguous_format, torch.channels_last),
    "contiguous": (torch.contiguous_format,),
    "channels_last": (torch.channels_last,),
}
CASES = [
    pytest.param(
        (row, layout, dtype), id=f"{row.name}-{str(layout).removeprefix('torch.')}-{str(dtype).removeprefix('torch.')}"
    )
    for row in IMPLS.values()
    if DEVICE.type in row.devices
    for layout in FORMATS[row.layout]
    for dtype in (FLOAT32, *LOW)
    if dtype in row.dtypes
]


@pytest.fixture
def case(request):
    """(row, layout, dtype), skipped where the row lacks something."""
    row, layout, dtype = request.param
    if reason := refusal(row, DEVICE, dtype, row.trains):
        pytest.skip(f"{row.name} {reason}")
    return row, layout, dtype


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """torch.empty is filled with NaN, so that reading memory that was never written cannot pass."""
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


def block(x, conv_w, conv_b, fuse_w, fuse_b, out=None):
    """Equations 5 to 8 of arXiv:1802.08797 without a concatenation: a product with a concatenation is a sum over its parts."""
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


def solve(function, arguments, upstream, layout=torch.contiguous_format, trains=True, out=None, device=CPU):
    """{"y": output, "gradient of x": ..., ...} of a block function; gradients only of one that trains."""

    def leaf(tensor):
        tensor = (
            tensor.detach().to(device).clone(memory_format=layout if tensor.dim() == 4 else torch.contiguous_format)
        )
        return tensor.requires_grad_(trains)

    leaves = {name: leaf(tensor) for name, tensor in arguments.items()}
    lists = [[tensor for name, tensor in leaves.items() if name.startswith(prefix)] for prefix in ("conv_w", "conv_b")]
    y = function(leaves["x"], *lists, leaves["fuse_w"], leaves["fuse_b"], out=out)
    results = {"y": y.detach().clone()}
    if trains:
        y.backward(upstream.to(device).clone(memory_format=layout))
        results |= {f"gradient of {name}": tensor.grad for name, tensor in leaves.items()}
    return results


def in_float64(arguments, upstream):
    return {name: tensor.double() for name, tensor in arguments.items()}, upstream.double()


def check(row, layout, shape, dtype, seed, out=None):
    arguments, upstream = problem(shape, dtype, seed)
    oracle = solve(block, *in_float64(arguments, upstream))
    plain = solve(naive.rdb, arguments, upstream, layout, device=DEVICE)
    results = solve(row.module.rdb, arguments, upstream, layout, row.trains, out, DEVICE)
    for name, result in results.items():
        assert result.dtype == dtype, f"{row.name}: {name} is {result.dtype}"
        assert_as_good_as_naive(
            result, oracle[name], plain[name], dtype, f"{row.name}, {name}, shape {shape}, seed {seed}"
        )
    return results["y"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_naive_is_the_papers_equations_in_float64(shape, seed):
    arguments, upstream = in_float64(*problem(shape, torch.float32, seed))
    oracle = solve(block, arguments, upstream)
    for name, result in solve(naive.rdb, arguments, upstream).items():
        assert_same_in_float64(result, oracle[name], f"{name}, seed {seed}")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", CASES, indirect=True)
def test_output_and_gradients_are_as_good_as_naives(case, shape, seed):
    row, layout, dtype = case
    check(row, layout, shape, dtype, seed)


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_out_is_written_whole_or_left_alone(case, seed):
    row, layout, dtype = case
    # `out` is the middle third of a buffer of NaN, as a block's slice of the global fusion's input is.
    shape = SHAPES[2]
    batch, g0, _, _, height, width = shape
    buffer = torch.full((batch, 3 * g0, height, width), float("nan"), dtype=dtype, device=DEVICE).to(
        memory_format=layout
    )
    before, out, after = buffer.split(g0, dim=1)
    y = check(row, layout, shape, dtype, seed, out)
    assert before.isnan().all(), f"{row.name} writes before out (seed {seed})"
    assert after.isnan().all(), f"{row.name} writes behind out (seed {seed})"
    assert torch.equal(out, y) or out.isnan().all(), f"{row.name} leaves out half written (seed {seed})"


def three_percent_off(*arguments, out=None):
    return 1.03 * naive.rdb(*arguments)


def layer_left_out(x, conv_w, conv_b, fuse_w, fuse_b, out=None):
    """The fusion does not see the last layer."""
    seen = torch.ones_like(fuse_w)
    seen[:, -conv_w[-1].shape[0] :] = 0
    return naive.rdb(x, conv_w, conv_b, fuse_w * seen, fuse_b)


def gradient_lost(x, conv_w, conv_b, fuse_w, fuse_b, out=None):
    return naive.rdb(x, conv_w, [b.detach() + 0 * b for b in conv_b], fuse_w, fuse_b)


def corner_not_written(*arguments, out=None):
    y = naive.rdb(*arguments)
    buffer = torch.empty_like(y)
    written = torch.ones_like(y, dtype=torch.bool)
    written[0, 0, 0, 0] = False
    return torch.where(written, y, buffer)


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("fault", [three_percent_off, layer_left_out, gradient_lost, corner_not_written])
def test_the_check_itself_notices_faults(fault, dtype, seed):
    row = Impl("faulty", SimpleNamespace(rdb=fault), (DEVICE.type,), (dtype,), "any", True, "for tests")
    with pytest.raises(AssertionError, match=r"faulty, .*relative error"):
        check(row, torch.contiguous_format, SHAPES[2], dtype, seed)


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_arguments_are_not_changed(case, seed):
    row, layout, dtype = case
    arguments, _ = problem(SHAPES[1], dtype, seed)
    given = {
        name: tensor.to(DEVICE, memory_format=layout if tensor.dim() == 4 else torch.preserve_format)
        for name, tensor in arguments.items()
    }
    copies = {name: tensor.clone() for name, tensor in given.items()}
    lists = [[tensor for name, tensor in given.items() if name.startswith(prefix)] for prefix in ("conv_w", "conv_b")]
    with torch.inference_mode():
        row.module.rdb(given["x"], *lists, given["fuse_w"], given["fuse_b"])
    for name, tensor in given.items():
        assert torch.equal(tensor, copies[name]), f"{row.name} changes {name} (seed {seed})"


def train(name, dtype, seed):
    """32 steps of Adam on a small RDN that a row computes in `dtype` -> (losses, all weights), float64."""
    torch.manual_seed(seed)
    model = RDN(ModelConfig(num_features=16, growth_rate=12, num_blocks=2, num_layers=3), name).to(
        memory_format=torch.channels_last
    )
    if dtype in LOW:
        model.compute_dtype, model.output_dtype = dtype, FLOAT32
    model.to(DEVICE if dtype is not torch.float64 else CPU, torch.float64 if dtype is torch.float64 else FLOAT32)
    device = next(model.parameters()).device
    optimizer = devices.adam(model.parameters(), device, 1e-3, 0.0)
    losses = []
    for _ in range(32):
        hr = torch.rand(2, 3, 18, 14).to(device, torch.float64 if dtype is torch.float64 else FLOAT32)
        optimizer.zero_grad()
        loss = F.l1_loss(model(F.avg_pool2d(hr, 2)).to(hr.dtype), hr)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64), torch.cat(
        [p.detach().cpu().double().flatten() for p in model.parameters()]
    )


@functools.cache
def trained(name, dtype, seed):
    return train(name, dtype, seed)


@pytest.mark.parametrize("dtype", [FLOAT32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "row",
    [row for row in IMPLS.values() if DEVICE.type in row.devices and row.name != "naive"],
    ids=lambda row: row.name,
)
def test_32_steps_end_where_naive_ends(row, dtype):
    """Errors against training in float64, for losses and weights, as the median of five runs: a ReLU or an Adam step whose sign
    is decided by rounding alone now and then carries a single run away."""
    if reason := refusal(row, DEVICE, dtype, True):
        pytest.skip(f"{row.name} {reason}")
    errors = {"naive": [], row.name: []}
    for seed in range(5):
        oracle = trained("naive", torch.float64, seed)
        for name, seen in errors.items():
            seen.append(
                [
                    relative_error(result, wanted)
                    for result, wanted in zip(trained(name, dtype, seed), oracle, strict=True)
                ]
            )
    for what, plain, own in zip(
        ("losses", "weights"), zip(*errors["naive"], strict=True), zip(*errors[row.name], strict=True), strict=True
    ):
        bound = 2 * statistics.median(plain) + SLACK[dtype]
        assert statistics.median(own) <= bound, f"{row.name}, {what}: {own}, naive: {plain}"


def test_rows_declare_themselves():
    for name, row in IMPLS.items():
        assert row.name == name
        assert row.layout in FORMATS
        assert row.devices
        assert set(row.devices) <= {"cpu", "cuda", "npu"}
        assert set(row.dtypes) <= {FLOAT32, torch.float64, *LOW}
        assert row.why


@pytest.fixture
def table(monkeypatch):
    """A table of rows: four that the CPU cannot run or train in float32, each for its own reason, and two that can do all."""
    rows = (
        Impl("elsewhere", naive, ("cuda", "npu"), (FLOAT32,), "any", True, "for tests"),
        Impl("narrow", naive, ("cpu",), LOW, "any", True, "for tests"),
        Impl(
            "poor",
            SimpleNamespace(rdb=naive.rdb, missing=lambda: "needs a moon"),
            ("cpu",),
            (FLOAT32,),
            "any",
            True,
            "for tests",
        ),
        Impl("forward_only", naive, ("cpu",), (FLOAT32,), "any", False, "for tests"),
        Impl("first", naive, ("cpu", "cuda"), (FLOAT32,), "any", True, "for tests"),
        Impl("second", naive, ("cpu",), (FLOAT32,), "any", True, "for tests"),
    )
    monkeypatch.setattr(rdb, "IMPLS", {row.name: row for row in rows})


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
def test_select_gives_the_row_that_is_named():
    assert select("second", CPU, FLOAT32, True).name == "second"
    assert select("forward_only", CPU, FLOAT32, False).name == "forward_only"


def test_model_with_an_unknown_implementation_is_a_user_error():
    model = RDN(ModelConfig(num_features=4, growth_rate=3, num_blocks=1, num_layers=1), rdb="nonsense")
    with pytest.raises(UserError, match="nonsense"):
        model(torch.zeros(1, 3, 4, 4))
