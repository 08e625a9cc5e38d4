"""RunState's counts, the learning rate and the moving average's decay: plain arithmetic."""

import dataclasses
import json
import math

import pytest

from rdn_fast.config import TrainConfig, make_configs
from rdn_fast.training.state import RunState, ema_decay, learning_rate


def test_a_skipped_step_counts_but_not_towards_the_loss():
    state = RunState(loss_scale=8.0)
    for loss, skipped in ((3.0, False), (9.0, True), (9.0, True)):
        state = state.after_steps(1).after_result(loss, skipped)
    assert (state.step, state.position, state.skipped, state.skips_in_a_row) == (3, 3, 2, 2)
    assert state.epoch_loss == 3.0
    state = state.after_steps(1).after_result(1.0, False)
    assert (state.skipped, state.skips_in_a_row, state.epoch_loss) == (2, 0, 2.0)


def test_another_loss_scale_starts_the_skips_anew():
    state = RunState(loss_scale=8.0).after_result(1.0, True).with_loss_scale(4.0)
    assert (state.loss_scale, state.skipped, state.skips_in_a_row) == (4.0, 1, 0)


@pytest.mark.parametrize(("position", "epoch", "then"), [(3, 5, 0), (2, 4, 2)], ids=["whole", "stopped within"])
def test_the_end_of_an_epoch(position, epoch, then):
    state = RunState(step=20, epoch=4, position=position, loss_sum=1.0, loss_steps=2, waited=0.5, epoch_speed=[[], []])
    ended = state.after_epoch(steps=3)
    assert (ended.epoch, ended.position, ended.step, ended.ended) == (epoch, then, 20, 20)
    assert (ended.epoch_loss, ended.waited, ended.epoch_speed) == (None, 0.0, None)


def test_the_best_epoch():
    state = RunState(epoch=7).with_best(30.0, [30.0, 32.0], None)
    assert (state.best_epoch, state.best_psnr, state.best_psnr_canonical) == (7, 31.0, 30.0)
    assert state.is_best([30.5, 32.0])
    assert not state.is_best([30.0, 32.0])
    assert not state.is_best([math.nan, 40.0])
    assert not RunState().is_best([math.nan])
    assert state.is_best([31.5])  # of another set
    assert not state.is_best([30.5])


def test_an_infinite_psnr_does_not_decide_which_epoch_is_best():
    finite = RunState().with_best(35.0, [40.0, 30.0], None)
    assert finite.is_best([math.inf, 30.1])
    assert not finite.is_best([math.inf, 29.9])
    exact = finite.with_best(30.1, [math.inf, 30.1], None)
    assert exact.best_psnr == 30.1
    assert exact.is_best([math.inf, 30.2])
    assert exact.is_best([20.0, 30.2])
    assert not exact.is_best([math.inf, 30.0])
    only = RunState().with_best(math.inf, [math.inf, math.inf], None)
    assert not only.is_best([math.inf, math.inf])
    assert not only.is_best([math.inf, 50.0])
    assert RunState().is_best([math.inf])


def test_low_precision_only_says_what_may_be_the_best_epoch():
    measured, unmeasured = (RunState().with_best(30.0, [30.0, 32.0], low) for low in ([30.5, 31.0], None))
    assert measured.may_be_best([30.5, 31.5])
    assert not measured.may_be_best([30.5, 31.0])
    assert not measured.may_be_best([math.inf, 30.9])
    assert measured.may_be_best([20.0])  # of another set
    for state, low in ((measured, None), (unmeasured, [1.0, 1.0]), (RunState(), [1.0, 1.0])):
        assert state.may_be_best(low)
    assert not measured.is_best([29.0, 32.0])


def test_a_checkpoint_gives_the_same_state_back():
    state = RunState(step=3, epoch_speed=[[1, 0.5, 0.25], [0, 0.0, 0.0]], loss_scale=2.0)
    assert RunState(**json.loads(json.dumps(dataclasses.asdict(state)))) == state


@pytest.mark.parametrize("epochs", [2, 3, 10, 57, 800])
def test_the_learning_rate_falls_where_yjn870s_does(epochs):
    """As its train.py, f2641c0: lr * 0.1 ** (epoch // int(num_epochs * 0.8))."""
    config = make_configs({"num_epochs": epochs, "lr": 1.0})[1]
    rates = [learning_rate(config, epoch, 0, 10) for epoch in range(epochs)]
    assert rates == pytest.approx([0.1 ** (epoch // int(epochs * 0.8)) for epoch in range(epochs)])


def test_one_epoch_has_one_learning_rate():
    assert learning_rate(TrainConfig(num_epochs=1, lr=1.0), 0, 0, 10) == 1


def test_learning_rate():
    step = TrainConfig(lr=1.0, lr_step=600, lr_gamma=0.1)
    rates = [learning_rate(step, epoch, 0, 10) for epoch in (0, 599, 600, 1199, 1200)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    several = TrainConfig(lr=1.0, lr_schedule="multistep", lr_milestones="2, 5,6", lr_gamma=0.5)
    assert [learning_rate(several, epoch, 0, 10) for epoch in range(8)] == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.125, 0.125]
    warm = TrainConfig(lr=1.0, lr_warmup=4, lr_step=1, lr_gamma=0.1)
    rates = [learning_rate(warm, 0, step, 10) for step in range(6)] + [learning_rate(warm, 1, 1, 10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.05])
    cosine = TrainConfig(lr=2.0, lr_schedule="cosine")
    assert [learning_rate(cosine, 0, n, 100) for n in (0, 50, 100)] == pytest.approx([2, 1, 0])


def test_the_average_forgets_the_initial_weights():
    assert [ema_decay(0.9, step) for step in (0, 1, 100)] == pytest.approx([1 / 10, 2 / 11, 0.9])
