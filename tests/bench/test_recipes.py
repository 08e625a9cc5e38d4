"""Recipes that compute the same, and checks that notice faults."""

from __future__ import annotations

import dataclasses
import functools
import re
import time

import pytest
import torch

from bench import baseline, measure, timing
from bench.case import Contender
from bench.cases import rdb as rdb_case
from bench.cases import training_step
from bench.ceilings import Ceiling
from bench.measure import Bench
from bench.models import PATCH, RDN_B, compare, ours
from bench.parity import Problem, assert_same_in_float64, solve_module
from bench.recipe import CannotRun
from rdn_fast import rdb
from rdn_fast.config import ModelConfig
from rdn_fast.model import RDN
from rdn_fast.rdb import Impl, naive

CPU = torch.device("cpu")
# Enough channels for the errors of a gradient to average out.
TINY = ModelConfig(num_features=24, growth_rate=16, num_blocks=2, num_layers=2)


@pytest.mark.parametrize(
    "config",
    [TINY, dataclasses.replace(TINY, scale=4), dataclasses.replace(TINY, scale=3, upsample_channels=5)],
    ids=str,
)
def test_the_baselines_model_is_rdn_fasts_in_float64(config):
    model = RDN(config, "naive").double()
    plain = baseline.RDN(config).double()
    plain.load_state_dict(model.state_dict())  # strict: the same names and shapes
    x = torch.rand(2, 3, 7, 5, dtype=torch.float64)
    upstream = torch.randn(2, 3, 7 * config.scale, 5 * config.scale, dtype=torch.float64)
    expected = solve_module(model, x, upstream)
    for name, result in solve_module(plain, x, upstream).items():
        assert_same_in_float64(result, expected[name], name)


def test_the_recipes_train_alike():
    recipes = [
        baseline.reference(TINY, CPU),
        *(
            baseline.stock(TINY, CPU, torch.float32, **options)
            for options in baseline.stock_variants(CPU, torch.float32, True).values()
        ),
        *(ours(TINY, CPU, torch.float32, impl.name) for impl in rdb.able(CPU, torch.float32, True)),
    ]
    state = baseline.RDN(TINY).state_dict()
    batches = [(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)) for _ in range(4)]
    for recipe in recipes:
        recipe.model.load_state_dict(state)
        for batch in batches:
            recipe.step(*(tensor.contiguous(memory_format=recipe.memory_format) for tensor in batch))
    assert {recipe.memory_format for recipe in recipes[1:3]} == {torch.channels_last, torch.contiguous_format}
    first = recipes[0].model.state_dict()
    for recipe in recipes[1:]:
        for name, value in recipe.model.state_dict().items():
            # Four steps moved each weight by up to 4 LR.
            torch.testing.assert_close(value, first[name], rtol=0, atol=0.1 * baseline.LR)
    assert any((value - state[name]).abs().max() > 2 * baseline.LR for name, value in first.items())


def test_the_problem_keeps_relus_from_their_kink():
    module = baseline.RDB(6, 4, 3)
    problem = Problem(module, torch.randn(2, 6, 9, 7), torch.bfloat16)
    distances = []
    hooks = [
        layer.conv.register_forward_hook(lambda *arguments: distances.append(arguments[2].abs().min().item()))
        for layer in module.layers
    ]
    module.load_state_dict(problem.state)
    module(problem.x.double())
    for hook in hooks:
        hook.remove()
    assert len(distances) == 3
    assert min(distances) > 1e-3  # among 126 values of each channel, a hundredth of that would be common
    assert problem.x.dtype == problem.state["lff.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("training", [True, False])
def test_what_the_problem_says_of_copies_is_what_the_oracle_computes(training):
    module = baseline.RDB(6, 4, 3)
    problem = Problem(module, torch.randn(2, 6, 9, 7), torch.float32, batch=6, training=training)
    expected = solve_module(module, problem.x.double(), problem.upstream.double())
    assert problem.x.shape == problem.upstream.shape == (6, 6, 9, 7)
    assert len(problem.x.unique(dim=0)) == 2
    assert problem.oracle.keys() == (expected.keys() if training else {"output"})
    for name, value in problem.oracle.items():
        assert_same_in_float64(value, expected[name], name)


def test_the_problem_has_whole_copies_only():
    with pytest.raises(ValueError, match="batch 3 is no multiple of 2 images"):
        Problem(baseline.RDB(6, 4, 3), torch.randn(2, 6, 9, 7), torch.float32, batch=3)


def three_percent_off(x, *rest):
    return 1.03 * naive.rdb(x, *rest)


def gradient_lost(x, conv_w, conv_b, fuse_w, fuse_b):
    return naive.rdb(x, conv_w, conv_b, fuse_w, fuse_b.detach() + 0 * fuse_b)


def unwritten(x, *rest):
    y = naive.rdb(x, *rest)
    hole = torch.ones_like(y)
    hole[-1, -1, -1, -1] = float("nan")
    return y * hole


def last_chunk_lost(x, *weights):
    """Computes in chunks of two images; the parameters' gradients miss those of the last one."""
    *chunks, last = x.split(2)
    if not chunks:
        return naive.rdb(x, *weights)
    detached = [
        [w.detach() for w in group] if isinstance(group, (list, tuple)) else group.detach() for group in weights
    ]
    return torch.cat([*(naive.rdb(chunk, *weights) for chunk in chunks), naive.rdb(last, *detached)])


def add_impl(monkeypatch, function):
    """An implementation that any use of the table finds."""

    class Module:
        rdb = staticmethod(function)

    monkeypatch.setitem(
        rdb.IMPLS, "faulty", Impl("faulty", Module, ("cpu",), (torch.float32, torch.bfloat16), True, "for tests")
    )


@pytest.fixture(params=[three_percent_off, gradient_lost, unwritten], ids=lambda fault: fault.__name__)
def faulty_impl(request, monkeypatch):
    add_impl(monkeypatch, request.param)


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(rdb_case.comparison, True, TINY, (2, 7, 5), CPU, torch.float32),
        functools.partial(rdb_case.comparison, True, TINY, (2, 7, 5), CPU, torch.bfloat16),
        functools.partial(training_step.comparison, TINY, 1, CPU, [torch.float32], "naive", True),
    ],
    ids=["block float32", "block bfloat16", "training step"],
)
def test_a_wrong_implementation_is_refused_and_the_right_ones_are_not(faulty_impl, make):
    verdicts = {}
    for entry in make().entries:
        try:
            entry.build().check()
            verdicts[entry.recipe] = "right"
        except CannotRun:
            continue
        except AssertionError as error:
            verdicts[entry.recipe] = str(error)
    assert "relative error" in verdicts.pop("impl faulty")
    assert {"reference", "stock", "impl naive"} <= verdicts.keys()
    assert set(verdicts.values()) == {"right"}


@pytest.mark.parametrize(
    "make",
    [
        lambda batch: rdb_case.comparison(True, TINY, (batch, 7, 5), CPU, torch.float32),
        lambda batch: training_step.comparison(TINY, batch, CPU, [torch.float32], "naive", every=True),
    ],
    ids=["block", "training step"],
)
def test_the_timed_batch_is_what_is_checked(make, monkeypatch):
    add_impl(monkeypatch, last_chunk_lost)
    for batch in (2, 8):
        contender = next(entry for entry in make(batch).entries if entry.recipe == "impl faulty").build()
        if batch == 2:  # one chunk: right
            contender.check()
        else:
            with pytest.raises(AssertionError, match=r"impl faulty float32, gradient of .*weight: relative error"):
                contender.check()


@pytest.mark.usefixtures("high_ceilings", "faulty_impl")
def test_what_is_wrong_gets_no_speed_and_fails_the_run(out, capsys):
    bench = Bench("test", CPU, "naive")
    bench.compare(rdb_case.comparison(True, TINY, (2, 7, 5), CPU, torch.float32), 2, span=0.01)
    rows = {row.recipe: row for row in bench.results.rows}
    assert rows["impl faulty"].kind == "not measured"
    assert rows["impl faulty"].seconds is None
    assert "wrong" in rows["impl faulty"].note
    assert rows["impl naive"].gflops > 0
    assert rows["impl naive"].rounds == 2 <= rows["impl naive"].rounds_run
    assert rows["reference"].vs_reference == 1
    assert bench.conclude("1p", 0.0) == 1
    assert "FAILED  RDB training, impl faulty float32: wrong" in capsys.readouterr().out


@pytest.mark.usefixtures("high_ceilings")
def test_a_step_that_does_nothing_is_noticed(out):
    def idle():
        return dataclasses.replace(ours(TINY, CPU, torch.float32, "naive"), step=lambda lr, hr: None)

    makers = [("reference", torch.float32, lambda: baseline.reference(TINY, CPU)), ("rdn_fast", torch.float32, idle)]
    bench = Bench("test", CPU, "naive")
    bench.compare(compare("training step", TINY, (1, 3, 8, 8), CPU, True, makers), rounds=1)
    assert bench.failures == ["training step, rdn_fast float32: wrong: the steps changed no weight"]
    measured = [row.recipe for row in bench.results.rows if row.kind == "measured" and row.case != "ceiling"]
    assert measured == ["reference"]


def test_work_is_counted_as_the_configuration_counts_it():
    step = training_step.comparison(RDN_B, 2, CPU, [torch.float32], "naive")
    assert step.flop == pytest.approx(2 * 136e9, rel=0.01)
    forward, training = (
        rdb_case.comparison(training, RDN_B, (2, PATCH, PATCH), CPU, torch.float32) for training in (False, True)
    )
    assert training.flop == 3 * forward.flop
    assert forward.flop == 2 * 2 * 32 * 32 * (9 * 64 * 64 * 36 + 576 * 64)


@pytest.mark.usefixtures("high_ceilings")
def test_every_implementation_is_measured_that_can_run(out):
    bench = Bench("test", CPU, "naive")
    for training in (True, False):
        bench.compare(rdb_case.comparison(training, TINY, (1, PATCH, PATCH), CPU, torch.float32), 5, span=0.001)
    assert bench.failures == []
    names = ["reference", "stock", *(f"impl {impl.name}" for impl in rdb.able(CPU, torch.float32, True))]
    assert [(row.case, row.recipe) for row in bench.results.rows if row.case != "ceiling"] == [
        (case, name) for case in ("RDB training", "RDB forward") for name in names
    ]


def test_a_plain_recipe_above_its_ceiling_makes_its_group_unsteady(out, monkeypatch):
    slow = Ceiling("product", torch.float32, 1)  # FLOP of a run that takes a millisecond
    monkeypatch.setattr(measure.ceilings, "contenders", lambda *_: {slow: Contender(lambda: time.sleep(0.001))})
    monkeypatch.setattr(timing, "AGAIN", 2)
    monkeypatch.setattr(timing, "STEADY", 100.0)
    bench = Bench("test", CPU, "naive")
    bench.compare(rdb_case.comparison(False, TINY, (1, 7, 5), CPU, torch.float32), rounds=2, span=0.001)
    roof, *rows = bench.results.rows
    assert (roof.case, roof.recipe, roof.rounds, roof.rounds_run) == ("ceiling", "product", 2, 4)
    assert {row.recipe for row in rows} >= {"reference", "stock", "impl naive"}
    for row in rows:
        assert re.fullmatch(r"(reference|stock) at \d+% of its ceiling", row.unsteady)
        assert row.ceiling_share > 1.05
