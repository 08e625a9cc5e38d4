"""OptimizerStep against plain torch: scaling, clipping, skipped steps, halving of the loss scale."""

import copy

import pytest
import torch

from rdn_fast import devices
from rdn_fast.training.optimizer_step import HALVE_AFTER, OptimizerStep, SyncingOptimizerStep, make_optimizer_step

CPU = torch.device("cpu")


def parameters():
    return [torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(7))]


def optimizers():
    """The device's own Adam, which takes `found_inf`, and one that does not."""
    return [
        lambda p: devices.adam(p, CPU, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, foreach=True),
    ]


def run(make, params, gradients, scale=1.0, clip=None):
    params = copy.deepcopy(params)
    optimizer = make(params)
    optimizer_step = make_optimizer_step(optimizer, CPU, scale, clip)
    for of_step in gradients:
        backward(optimizer_step, params, of_step)
        optimizer_step.step()
    return params, optimizer


def backward(optimizer_step, params, gradients):
    """Make the scaled `gradients` those of `params`."""
    optimizer_step._optimizer.zero_grad()
    optimizer_step.backward(sum((p * g).sum() for p, g in zip(params, gradients, strict=True)))


@pytest.mark.parametrize("make", optimizers())
@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
def test_step_is_adam_on_unscaled_clipped_gradients(make, scale, clip):
    params = parameters()
    gradients = [[torch.randn_like(p) for p in params] for _ in range(4)]
    ours, _ = run(make, params, gradients, scale, clip)
    expected = copy.deepcopy(params)
    adam = torch.optim.Adam(expected, lr=0.01, weight_decay=0.1, foreach=False, fused=False)
    for of_step in gradients:
        for p, g in zip(expected, of_step, strict=True):
            p.grad = g.clone()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(expected, clip)
        adam.step()
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_weight_decay_shrinks_parameters():
    params = [torch.nn.Parameter(torch.ones(4))]
    zero = [[torch.zeros(4)]]
    (decayed,), _ = run(lambda p: devices.adam(p, CPU, lr=0.01, weight_decay=0.1), params, zero)
    (plain,), _ = run(lambda p: devices.adam(p, CPU, lr=0.01, weight_decay=0.0), params, zero)
    assert torch.equal(plain, params[0])
    assert (decayed < params[0]).all()


@pytest.mark.parametrize("make", optimizers())
@pytest.mark.parametrize("poison", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_step_with_overflow_changes_nothing(make, poison, clip):
    params = parameters()
    good = [[torch.randn_like(p) for p in params] for _ in range(2)]
    bad = [torch.randn_like(p) for p in params]
    bad[1][3] = poison
    with_bad, optimizer = run(make, params, [good[0], bad, good[1]], 8.0, clip)
    without, reference = run(make, params, good, 8.0, clip)
    for a, b in zip(with_bad, without, strict=True):
        assert torch.equal(a, b)
        for key, value in reference.state[b].items():
            assert torch.equal(optimizer.state[a][key], value), key  # moments and step count, too


@pytest.mark.parametrize(("make", "kind"), list(zip(optimizers(), (OptimizerStep, SyncingOptimizerStep), strict=True)))
def test_step_returns_whether_it_was_skipped(make, kind):
    p = torch.nn.Parameter(torch.ones(2))
    optimizer_step = make_optimizer_step(make([p]), CPU, 1.0)
    assert type(optimizer_step) is kind
    backward(optimizer_step, [p], [torch.tensor([1.0, float("nan")])])
    assert optimizer_step.step().item() == 1
    backward(optimizer_step, [p], [torch.ones(2)])
    assert optimizer_step.step().item() == 0


@pytest.mark.parametrize("make", optimizers())
@pytest.mark.parametrize("clip", [None, 1.0])
def test_scale_is_halved_only_after_consecutive_overflows(make, clip):
    p = torch.nn.Parameter(torch.ones(2))
    optimizer_step = make_optimizer_step(make([p]), CPU, 3.0, clip)
    good, bad = torch.ones(2), torch.tensor([1.0, float("inf")])
    scales = []
    for gradient in [*[bad] * (HALVE_AFTER - 1), good, *[bad] * HALVE_AFTER, good, *[bad] * 3 * HALVE_AFTER]:
        backward(optimizer_step, [p], [gradient])
        finite = p.grad.isfinite()
        assert (p.grad[finite] == optimizer_step.scale).all()  # by the current scale
        optimizer_step.step()
        scales.append(optimizer_step.scale.item())
    before = 2 * HALVE_AFTER - 1
    assert scales == [3.0] * before + [1.5] * (len(scales) - before)  # 0.75 would be below 1


@pytest.mark.parametrize("make", optimizers())
def test_skips_in_a_row_resume_from_their_count(make):
    p = torch.nn.Parameter(torch.ones(2))
    optimizer_step = make_optimizer_step(make([p]), CPU, 8.0, None, HALVE_AFTER - 2)
    for expected in (8.0, 4.0, 4.0):
        backward(optimizer_step, [p], [torch.full((2,), float("inf"))])
        optimizer_step.step()
        assert optimizer_step.scale.item() == expected


@pytest.mark.parametrize("make", optimizers())
def test_halved_scale_equals_half_the_scale_from_the_start(make):
    params = parameters()
    gradients = [torch.randn_like(p) for p in params]
    halved, other = (copy.deepcopy(params) for _ in range(2))
    ours = make_optimizer_step(make(halved), CPU, 1024.0, None, HALVE_AFTER - 1)
    theirs = make_optimizer_step(make(other), CPU, 512.0)
    backward(ours, halved, [torch.full_like(p, float("nan")) for p in params])
    ours.step()
    for optimizer_step, weights in ((ours, halved), (theirs, other)):
        backward(optimizer_step, weights, gradients)
        optimizer_step.step()
    assert all(torch.equal(a, b) for a, b in zip(halved, other, strict=True))
    assert not torch.equal(other[0], params[0])
