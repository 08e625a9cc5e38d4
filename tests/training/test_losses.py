"""Losses, and gradients that add up over several batches of a step."""

import pytest
import torch

from rdn_fast import RDN, ModelConfig, TrainConfig
from rdn_fast.errors import UserError
from rdn_fast.training.losses import weighted_loss
from rdn_fast.training.optimizer_step import make_optimizer_step
from rdn_fast.training.step import TrainStep

CPU = torch.device("cpu")
TINY = ModelConfig(2, 6, 4, 2, 2)
ERRORS = {
    "l1": lambda error: error.abs(),
    "mse": lambda error: error**2,
    "charbonnier": lambda error: (error**2 + 1e-6) ** 0.5,
}


@pytest.mark.parametrize("kind", ERRORS)
def test_a_loss_is_the_weighted_sum_of_its_errors(kind, seed):
    torch.manual_seed(seed)
    y, hr, weights = torch.rand(3, 3, 8, 6), torch.rand(3, 3, 8, 6), torch.rand(3)
    errors = ERRORS[kind](y.double() - hr.double()).sum((1, 2, 3))
    torch.testing.assert_close(weighted_loss(y, hr, 0.25, kind).double(), errors.sum() / 4, rtol=1e-5, atol=0)
    of_each = weighted_loss(y, hr, weights, kind).double()
    torch.testing.assert_close(of_each, errors @ weights.double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ERRORS)
def test_a_step_on_several_batches_is_the_step_on_all_their_patches(kind, seed):
    torch.manual_seed(seed)
    lr, hr = torch.rand(5, 3, 6, 6).double(), torch.rand(5, 3, 12, 12)
    start, results = RDN(TINY, "naive").double().state_dict(), {}
    for at_once in (None, 5, 2, 1):  # of 2, the last batch is a partial one
        model = RDN(TINY, "naive").double()
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        step = TrainStep(model, optimizer, make_optimizer_step(optimizer, CPU, 1.0), CPU, None, kind, at_once)
        share, skipped = step(lr, hr, torch.tensor(1 / hr.numel()))
        assert not skipped
        results[at_once] = torch.cat([share.double()[None], *(p.detach().flatten() for p in model.parameters())])
        assert not torch.equal(results[at_once][1:], torch.cat([value.flatten() for value in start.values()]))
    for at_once in (5, 2, 1):
        torch.testing.assert_close(results[at_once][1:], results[None][1:], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(results[at_once][0], results[None][0], rtol=1e-5, atol=0)


def test_a_step_is_skipped_whole_when_one_of_its_batches_overflows(seed):
    torch.manual_seed(seed)
    model = RDN(TINY, "naive")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    step = TrainStep(model, optimizer, make_optimizer_step(optimizer, CPU, 1.0), CPU, None, "l1", 2)
    lr, hr = torch.rand(4, 3, 6, 6), torch.rand(4, 3, 12, 12)
    lr[0, 0, 0, 0] = float("inf")
    assert step(lr, hr, torch.tensor(1 / hr.numel()))[1] == 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"accumulate": 0}, "--accumulate 0: must be greater than 0"),
        ({"accumulate": 2, "amp_backend": "apex"}, "--accumulate 2: not with --amp-backend apex"),
        ({"lr_warmup": -1}, "--lr-warmup -1: must not be negative"),
        ({"weight_decay": float("inf")}, "--weight-decay inf: must not be negative, and finite"),
        ({"optimizer": "Muon"}, "--optimizer Muon: choose one of adam, muon"),
        ({"lr_schedule": "Cosine"}, "--lr-schedule Cosine: choose one of "),
        ({"loss": "huber"}, "--loss huber: choose one of "),
        ({"lr_schedule": "multistep"}, "--lr-schedule multistep"),
        ({"lr_milestones": "5"}, "--lr-milestones"),
        ({"lr_schedule": "multistep", "lr_milestones": "5,2"}, "--lr-milestones 5,2: give each epoch once"),
        ({"lr_schedule": "multistep", "lr_milestones": "5,x"}, "--lr-milestones 5,x: give epochs"),
        ({"lr_schedule": "multistep", "lr_milestones": ""}, "--lr-milestones : give epochs"),
    ],
    ids=str,
)
def test_mistakes_are_told_in_one_line(values, words):
    with pytest.raises(UserError) as raised:
        TrainConfig(**values)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
