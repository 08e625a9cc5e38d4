"""The bound of the parity check: plain PyTorch's memory formats set it, and faults are above it."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from bench import baseline, models
from bench.cases import rdb as rdb_case
from bench.parity import APART, SLACK, Parity, Problem, plain_error
from rdn_fast.config import ModelConfig

CPU = torch.device("cpu")
SMALL = ModelConfig(num_features=8, growth_rate=8, num_blocks=1, num_layers=1)
BIAS = "gradient of layers.0.conv.bias"


class Made:
    """A parity check on a block of which plain PyTorch errs by `errors`, one for each memory format."""

    def __init__(self, dtype: torch.dtype, *errors: float):
        self.problem = Problem(baseline.RDB(6, 4, 2), torch.randn(2, 6, 9, 7), dtype)
        self.dtype = dtype
        self.parity = Parity(lambda *_: self.problem, lambda _: [self.off_by(error) for error in errors])

    def off_by(self, error: float, *names: str):
        """Return a solve() whose results, or those called `names`, have this relative error, and others none."""
        scale = {name: 1.0 + error * (not names or name in names) for name in self.problem.oracle}
        return lambda *_: {name: scale[name] * value for name, value in self.problem.oracle.items()}

    def accepts(self, solve) -> bool:
        try:
            self.parity.check(solve, self.dtype, "a recipe")
        except AssertionError:
            return False
        return True


@pytest.mark.parametrize("dtype", SLACK, ids=str)
def test_the_memory_format_that_errs_more_sets_the_bound_of_every_result(dtype):
    low, high = SLACK[dtype], 4 * SLACK[dtype]
    for errors in ((low, high), (high, low)):
        made = Made(dtype, *errors)
        assert all(made.accepts(made.off_by(error)) for error in errors)
        bound = 2 * high + SLACK[dtype]
        for name in made.problem.oracle:
            assert made.accepts(made.off_by(0.99 * bound, name))
            assert not made.accepts(made.off_by(1.01 * bound, name))


def test_a_memory_format_that_is_wrong_is_refused_and_does_not_widen_the_bound():
    made = Made(torch.float32, 6e-7, 1e-3)
    assert not made.accepts(made.off_by(1e-3))
    assert not made.accepts(made.off_by(1e-4, BIAS))
    assert made.accepts(made.off_by(6e-7))


def test_nan_is_refused_wherever_it_is():
    nan = math.nan
    made = Made(torch.float32, 6e-7, 2e-6)
    for name in made.problem.oracle:
        assert not made.accepts(made.off_by(nan, name))
    for errors in ((nan, 1e-6), (1e-6, nan)):
        assert math.isnan(plain_error(errors, torch.float32))
        made = Made(torch.float32, *errors)
        assert not made.accepts(made.off_by(0.0))


def test_the_error_of_plain_pytorch_is_the_largest_up_to_a_limit():
    slack = SLACK[torch.float32]
    assert plain_error([3e-7], torch.float32) == 3e-7
    assert plain_error([6e-7, 2.4e-6], torch.float32) == plain_error([2.4e-6, 6e-7], torch.float32) == 2.4e-6
    assert plain_error([6e-7, 1.0], torch.float32) == pytest.approx(APART * 6e-7 + slack)
    assert plain_error([0.0, 0.0], torch.float32) == 0


def test_a_bias_gradient_of_as_many_pixels_as_the_training_batch_has():
    """In a sum of 8 * 32 * 32 terms 1e-4 is a fault, and no rounding of either memory format."""
    problem = Problem(baseline.RDB(8, 8, 1), torch.randn(2, 8, 32, 32), torch.float32, batch=8)
    formats = torch.contiguous_format, torch.channels_last
    plain = [partial(rdb_case.block(SMALL, CPU, torch.float32, one).solve, True) for one in formats]
    parity = Parity(lambda *_: problem, lambda _: plain)

    def wrong(*arguments):
        results = plain[1](*arguments)
        return results | {BIAS: results[BIAS] * (1 + 1e-4)}

    for solve in plain:
        parity.check(solve, torch.float32, "plain")
    with pytest.raises(AssertionError, match=rf"a kernel, {BIAS}: relative error"):
        parity.check(wrong, torch.float32, "a kernel")


def test_a_miss_is_judged_on_another_problem_of_whole_models_too(monkeypatch):
    """A result that is wrong on the first problem alone passes; one that is wrong on both does not."""
    made, problems = [], []

    class Noted(Problem):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            problems.append(self)

    monkeypatch.setattr(models, "Problem", Noted)
    monkeypatch.setattr(models, "Parity", lambda *arguments: made.append(Parity(*arguments)) or made[-1])
    models.compare("training step", SMALL, (1, 3, 6, 5), CPU, True, [])
    plain = partial(baseline.reference(SMALL, CPU).solve, True)

    def wrong(times: int):
        calls = iter(range(1, 3))
        return lambda *arguments: (
            plain(*arguments) | ({"output": torch.zeros(1, 3, 12, 10)} if next(calls) <= times else {})
        )

    made[0].check(wrong(0), torch.float32, "right")
    assert len(problems) == 1
    made[0].check(wrong(1), torch.float32, "wrong once")
    assert len(problems) == 2
    assert not torch.equal(problems[0].x, problems[1].x)
    with pytest.raises(AssertionError, match="wrong twice, output: relative error"):
        made[0].check(wrong(2), torch.float32, "wrong twice")
    made[0].check(plain, torch.bfloat16, "float32 in the place of bfloat16")
    assert len(problems) == 2  # dtypes share them
