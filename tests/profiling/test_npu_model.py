"""profiling.npu_model and its parts: what holds of any time, and what the model says beside published figures."""

import random
from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
import torch

from bench.models import RDN_A, RDN_B
from profiling import hivm, npu_changes, npu_exchange, npu_instructions, npu_model, npu_tiles
from profiling.hivm_order import CUBE, VECTORS
from profiling.npu_chips import CHIPS, FAST, SCENARIOS, SLOW
from profiling.npu_operators import trace
from profiling.npu_plan import KINDS, SHAPES, TARGETS
from profiling.npu_step import by_group, group_of, kind_of, seconds, step_seconds
from profiling.npu_timeline import drawing, expand, simulate
from rdn_fast.config import ModelConfig
from rdn_fast.distributed.gradients import BUCKET_SHARES, GradientBuckets
from rdn_fast.model import RDN
from rdn_fast.rdb import npu_conv_kernels
from rdn_fast.rdb.npu_conv_planes import Planes

needs_package = pytest.mark.skipif(
    hivm.package() is None, reason="needs Ascend's compiler: make setup-ascend (Python 3.11, x86-64 Linux)"
)
A2, OLD = CHIPS["910B2"], CHIPS["910"]


def text(kind: str, name: str = "rdn-b") -> str:
    batch, g0, g, layers, height, width = SHAPES[name]
    shape = Planes(batch, height, width, g0, g, layers)
    if kind == "weight_gradient":
        return npu_conv_kernels.weight_gradient(shape.k, shape.row, torch.float16)
    return npu_conv_kernels.sums(kind, shape.k, shape.row, shape.rows, torch.float16)


@pytest.fixture
def dice(seed) -> random.Random:
    return random.Random(seed)


@pytest.fixture(scope="module")
def small():
    """A step of two blocks of rdn-b on 8 patches."""
    return trace("npu_conv", replace(RDN_B, num_blocks=2), 8)


def test_the_committed_instructions_are_of_todays_kernels():
    assert npu_instructions.known()["kernels"].keys() == set(map(npu_instructions.key, npu_instructions.texts()))


@needs_package
@pytest.mark.parametrize("kind", KINDS)
def test_the_committed_instructions_are_the_compilers(kind, dice):
    kernel = text(kind, dice.choice(list(SHAPES)))
    committed = npu_instructions.known()["kernels"][npu_instructions.key(kernel)]
    assert npu_instructions.instructions(kernel, dice.choice(TARGETS)) == committed
    assert npu_instructions.known()["compiler"] == f"ascendnpu-ir {hivm.version()}"


def flat(lines: list) -> list[str]:
    return [
        inner
        for line in lines
        for inner in ([line] if isinstance(line, str) else (one for body in line.bodies for one in flat(body)))
    ]


@needs_package
@pytest.mark.parametrize("kind", ["gradient", "weight_gradient"])
def test_expanded_instructions_are_those_that_the_module_runs(kind, dice):
    items, inner = dice.randint(1, 5), dice.randint(1, 7)
    plan = npu_instructions.plan(text(kind, "small"))
    for op in hivm.parse(hivm.compile_module(text(kind, "small"))).values():
        core = VECTORS[0] if op.attribute("sym_name").endswith("_aiv") else CUBE
        listed = npu_instructions.listed(op, core, text(kind, "small"), items, inner)
        assert list(expand(plan["cube" if core == CUBE else "vector"], items, inner)) == flat(listed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_no_pipe_is_busy_for_longer_than_the_kernel(kind, scenario, dice):
    plan, items, inner = npu_instructions.plan(text(kind)), dice.randint(1, 6), dice.randint(1, 9)
    found = simulate(plan, items, inner, A2, scenario)
    assert found.busy
    assert all(busy <= found.cycles * (1 + 1e-9) for busy in found.busy.values())
    assert found.cycles <= sum(found.busy.values())  # never do all pipes wait
    for pipe in found.busy:  # a pipe does one thing at a time
        spans = sorted((begin, end) for name, _, begin, end in found.spans if name == pipe)
        assert all(a[1] <= b[0] for a, b in pairwise(spans))


def test_a_drawing_shows_what_waits_for_what():
    lines = ["M a 4096000 0 0", "set M FIX 0", "wait M FIX 0", "FIX b 86000"]
    found = simulate({"cube": lines}, 1, 1, A2, FAST)  # 1000 cycles each
    assert drawing(found, 0, 2000, 8) == "cube FIX      ....####\ncube M        ####...."
    assert drawing(found, 500, 1000, 2) == "cube FIX      ..\ncube M        ##"


@pytest.mark.parametrize("kind", KINDS)
def test_faster_parts_never_make_a_kernel_slower(kind, dice):
    plan, items, inner = npu_instructions.plan(text(kind)), dice.randint(1, 6), dice.randint(1, 9)
    before = simulate(plan, items, inner, A2, SLOW).cycles
    for rate in ("l2_read", "l2_write"):
        assert simulate(plan, items, inner, replace(A2, **{rate: 2 * getattr(A2, rate)}), SLOW).cycles <= before
    assert simulate(plan, items, inner, A2, replace(SLOW, startup=100)).cycles < before
    assert simulate(plan, items, inner, replace(A2, l2_read=A2.l2_read / 8), SLOW).cycles > before


def test_more_cores_or_bandwidth_are_never_slower(small, dice):
    scenario, cores = dice.choice(SCENARIOS), dice.randint(1, 40)
    few, more = (replace(A2, cores=n) for n in (cores, cores + dice.randint(1, 20)))
    for operator in {operator.text: operator for operator in small.operators}.values():
        assert seconds(operator, more, scenario) <= seconds(operator, few, scenario)
    assert step_seconds(small, replace(A2, hbm=2 * A2.hbm), scenario) < step_seconds(small, A2, scenario)


@pytest.mark.parametrize("kind", ["layer", "gradient", "input_gradient", "fusion"])
def test_the_bytes_and_products_of_a_kernel_are_those_of_its_tiles(kind, dice):
    items, inner = dice.randint(1, 6), dice.randint(1, 9)
    found = simulate(npu_instructions.plan(text(kind)), items, inner, A2, FAST)
    batch, g0, g, layers, height, width = SHAPES["rdn-b"]
    shape = Planes(batch, height, width, g0, g, layers)
    taps, halo = (1, 0) if kind == "fusion" else (9, 2)
    pixels, k = shape.rows * shape.row, shape.k
    loaded = (shape.rows + halo) * shape.row * k * 2 + taps * k * k * 2
    assert found.bytes["cube MTE2"] == items * inner * loaded
    assert found.bytes["cube FIX"] == items * pixels * k * 4
    assert found.products == items * inner * pixels * taps * k * k
    assert sum(found.bytes[f"{core} MTE3"] for core in VECTORS) == items * pixels * k * 2


@pytest.mark.parametrize("impl", ["naive", "sliced", "summed"])
def test_the_flop_of_a_step_are_the_models(impl):
    config = replace(RDN_A, num_blocks=1)
    steps = trace(impl, config, 2)
    flop = 3 * 2 * 2 * config.macs(32, 32)
    first = 2 * 2 * 32**2 * 9 * 3 * config.num_features  # the gradient of the input, which is not computed
    padded = 2 * 2 * 32**2 * 9 * 13 * config.num_features  # of the first convolution, 3 channels count as 16
    assert sum(operator.flop for operator in steps.operators) == flop - first + padded


def test_the_bytes_of_concatenations_are_those_of_the_maps():
    config, batch = replace(RDN_B, num_blocks=1), 4
    cats = [operator for operator in trace("naive", config, batch).operators if operator.where == "naive.rdb"]
    written = sum(operator.written for operator in cats if operator.name == "cat")
    assert written == sum(config.num_features + j * config.growth_rate for j in range(1, 9)) * batch * 32**2 * 2


def test_npu_convs_kernels_multiply_what_the_convolutions_need(small):
    """Where tiles have no rests: every product of a layer and of its two gradients, but for padding of odd pairs."""
    config, found = small_config(), dict.fromkeys(KINDS, 0)
    for operator in small.operators:
        if operator.text:
            products = simulate(npu_instructions.plan(operator.text), 1, operator.inner, A2, FAST).products
            found[operator.name] += operator.items * products
    pixels = 8 * 32**2 * config.num_blocks
    fusion = (config.num_features + config.num_layers * config.growth_rate) * config.num_features
    layers = config.block_macs - fusion
    assert found["layer"] == pixels * layers
    assert found["fusion"] == pixels * fusion
    assert found["gradient"] + found["input_gradient"] == pixels * layers
    assert pixels * layers < found["weight_gradient"] < 1.35 * pixels * layers


def small_config():
    return replace(RDN_B, num_blocks=2)


def test_every_gradient_is_there_once_and_in_order(small):
    assert sum(bytes for _, bytes in small.ready) == 4 * sum(operator.read // 32 for operator in small.operators[-1:])
    assert [at for at, _ in small.ready] == sorted(at for at, _ in small.ready)


def test_groups_hold_all_of_a_step(small):
    for group in (group_of, kind_of):
        assert sum(by_group(small, A2, SLOW, group).values()) == pytest.approx(step_seconds(small, A2, SLOW))


@pytest.mark.parametrize("change", npu_changes.CHANGES)
def test_a_change_saves_less_than_the_step(change, small):
    for scenario in SCENARIOS:
        assert -0.01 < npu_changes.CHANGES[change](small, A2, scenario) / step_seconds(small, A2, scenario) < 0.3


def test_the_published_speeds_of_the_first_910_lie_where_the_page_says():
    found = npu_model.published()
    known, (slow, fast) = found["one card, images/s"]
    assert 0.9 < slow / known < 1.1
    assert 1.4 < fast / known < 1.8
    known, scaling = found["eight cards over eight times one"]
    assert all(abs(value - known) < 0.0015 for value in scaling)
    known, (slow, fast) = found["eight cards, images/s"]
    assert 0.9 < slow / known < 1.1


@pytest.mark.parametrize("model", npu_tiles.MODELS)
def test_the_model_chooses_npu_convs_tiles(model):
    for scenario in SCENARIOS:
        found = {tile: npu_tiles.total(npu_tiles.sums(model, 64, 24, tile), A2, scenario) for tile in (64, 128, 256)}
        assert found[256] <= 1.03 * min(found.values())


def test_buckets_are_filled_as_torch_fills_them(dice):
    sizes = [dice.choice((64, 4096, 300_000, 1_200_000)) for _ in range(dice.randint(1, 60))]
    first, cap = (dice.choice((1, 2, 4, 25)) * npu_exchange.MIB for _ in range(2))
    tensors = [torch.empty(size, device="meta") for size in sizes]
    assigned, _ = torch.distributed._compute_bucket_assignment_by_size(tensors, [first, cap])
    ready = [(float(i), 4 * size) for i, size in enumerate(sizes)]
    found = npu_exchange.in_torch(ready, first, cap)
    assert [at for at, _ in found] == [indices[-1] for indices in assigned]
    assert [bytes for _, bytes in found] == [sum(4 * sizes[i] for i in indices) for indices in assigned]


def test_shares_are_those_of_gradient_buckets(dice, monkeypatch):
    monkeypatch.setattr(torch.distributed, "broadcast", lambda *_: None)
    model = RDN(ModelConfig(num_features=16, growth_rate=16, num_blocks=dice.randint(1, 9), num_layers=2))
    buckets = GradientBuckets(model, 2)._buckets
    ready = [(float(i), 4 * len(p.flatten())) for i, p in enumerate(reversed(list(model.parameters())))]
    aligned = [(at, -(-bytes // 16) * 16) for at, bytes in ready]
    found = npu_exchange.in_shares(aligned, BUCKET_SHARES)
    assert [bytes for _, bytes in found] == [4 * bucket.flat.numel() for bucket in buckets]
    assert [at for at, _ in found] == [n - 1.0 for n in accumulate(len(bucket.params) for bucket in buckets)]


def test_the_models_shares_scale_as_the_gate_asks():
    steps = npu_model.step("naive", 64, OLD.cores)
    for scenario in SCENARIOS:
        chosen, before = (
            npu_exchange.efficiency(steps, OLD, shares, 4, scenario) for shares in (BUCKET_SHARES, npu_exchange.BEFORE)
        )
        assert chosen > before
        assert npu_exchange.efficiency(steps, OLD, BUCKET_SHARES, 2, scenario) > chosen
    assert npu_exchange.efficiency(steps, OLD, BUCKET_SHARES, 4, SLOW) > 4337 / (8 * 544)


def test_what_the_backward_pass_does_not_cover():
    chip = replace(A2, exchange=1e-9)  # a second for 1e9 bytes
    late = npu_exchange.LATENCY + 0.1
    assert npu_exchange.uncovered([(0.0, 10**8)], 1.0, chip) == 0
    assert npu_exchange.uncovered([(0.0, 10**8), (1.0, 10**8)], 1.0, chip) == pytest.approx(late)
    assert npu_exchange.uncovered([(1.0, 10**8), (1.0, 10**8)], 1.0, chip) == pytest.approx(2 * late)
    assert npu_exchange.uncovered([(1.0, 10**8)], 1.0, chip, 0.5) == pytest.approx(npu_exchange.LATENCY + 0.05)


def test_what_cannot_be_computed_is_told(small, monkeypatch):
    kernel = next(operator for operator in small.operators if operator.text)
    with pytest.raises(ValueError, match="no compiler for the 910"):
        seconds(kernel, OLD, FAST)
    monkeypatch.setattr(hivm, "package", lambda: None)
    with pytest.raises(ValueError, match=r"no instructions of layer \w+ in npu_instructions.json: `make setup-ascend`"):
        npu_instructions.plan(npu_conv_kernels.sums("layer", 16, 16, 1, torch.float16))
    with pytest.raises(ValueError, match="deadlock: cube"):
        simulate({"cube": ["receive MTE2 0"]}, 1, 1, A2, FAST)


@pytest.mark.slow
def test_the_page_has_what_the_model_says(capsys):
    page = npu_model.PAGE.read_text(encoding="utf-8")
    written = page.partition(npu_model.BEGIN)[2].partition(npu_model.END)[0].strip()
    assert written == npu_model.page(), "the page is stale: python -m profiling.npu_model --write"
    npu_model.main([])
    assert npu_model.page() in capsys.readouterr().out
