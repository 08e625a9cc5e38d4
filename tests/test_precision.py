"""The optimizer step against torch's own pieces: scaling, clipping, and steps that must leave no trace."""

import copy

import pytest
import torch

from rdn_fast import device as devices
from rdn_fast import precision

CPU = torch.device("cpu")


def parameters():
    return [torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(7))]


def optimizers():
    """The device's own (takes a skip flag) and one that cannot."""
    return [lambda p: devices.adam(p, CPU, lr=0.01, weight_decay=0.1), lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, foreach=True)]


def run(make, params, gradients, scale=1.0, clip=None):
    params = copy.deepcopy(params)
    optimizer = make(params)
    for rows in gradients:
        for p, g in zip(params, rows, strict=True):
            p.grad = g.clone() * scale
        precision.step(optimizer, scale, clip)
    return params, optimizer


@pytest.mark.parametrize("make", optimizers())
@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
def test_step_is_adam_on_unscaled_clipped_gradients(make, scale, clip):
    params = parameters()
    gradients = [[torch.randn_like(p) for p in params] for _ in range(4)]
    ours, _ = run(make, params, gradients, scale, clip)
    expected = copy.deepcopy(params)
    adam = torch.optim.Adam(expected, lr=0.01, weight_decay=0.1, foreach=False, fused=False)
    for rows in gradients:
        for p, g in zip(expected, rows, strict=True):
            p.grad = g.clone()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(expected, clip)
        adam.step()
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_weight_decay_is_real():
    params = [torch.nn.Parameter(torch.ones(4))]
    zero = [[torch.zeros(4)]]
    (decayed,), _ = run(lambda p: devices.adam(p, CPU, lr=0.01, weight_decay=0.1), params, zero)
    (plain,), _ = run(lambda p: devices.adam(p, CPU, lr=0.01, weight_decay=0.0), params, zero)
    assert torch.equal(plain, params[0])
    assert (decayed < params[0]).all()


@pytest.mark.parametrize("make", optimizers())
@pytest.mark.parametrize("poison", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_overflow_changes_nothing(make, poison, clip):
    params = parameters()
    good = [[torch.randn_like(p) for p in params] for _ in range(2)]
    bad = [torch.randn_like(p) for p in params]
    bad[1][3] = poison
    with_bad, optimizer = run(make, params, [good[0], bad, good[1]], 8.0, clip)
    without, reference = run(make, params, good, 8.0, clip)
    for a, b in zip(with_bad, without, strict=True):
        assert torch.equal(a, b)
        for key, value in reference.state[b].items():
            assert torch.equal(optimizer.state[a][key], value), key  # the moments and the step count too


def test_skip_flag():
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = devices.adam([p], CPU, lr=0.1, weight_decay=0.0)
    p.grad = torch.tensor([1.0, float("nan")])
    assert precision.step(optimizer, 1.0, None).item() == 1
    p.grad = torch.ones(2)
    assert precision.step(optimizer, 1.0, None).item() == 0


def test_levels(monkeypatch):
    assert precision.choose("O0", "fp16", 1024.0, CPU) == precision.Precision("O0", torch.float32, torch.float32, 1.0)
    assert precision.choose("O1", "auto", 64.0, CPU) == precision.Precision("O1", torch.bfloat16, torch.float32, 64.0)
    assert precision.choose("O2", "fp16", 64.0, CPU) == precision.Precision("O2", torch.float16, torch.float16, 64.0)
    for there, level in ((True, "O1"), (False, "O0")):
        monkeypatch.setattr(devices, "low_precision_pays", lambda _, there=there: there)
        assert precision.choose("auto", "auto", 64.0, CPU).level == level
