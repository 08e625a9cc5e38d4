"""A training step as CUDA captures it, under a stand-in for its streams and graphs, against the plain one."""

import pytest
import torch
from simulated_cuda import Cuda
from torch.utils._python_dispatch import TorchDispatchMode

from rdn_fast import devices
from rdn_fast.config import ModelConfig
from rdn_fast.devices import CudaGraphed
from rdn_fast.model import RDN
from rdn_fast.training.losses import weighted_loss
from rdn_fast.training.muon import Muon
from rdn_fast.training.optimizer_step import make_optimizer_step
from rdn_fast.training.step import TrainStep

CPU = torch.device("cpu")
TINY = ModelConfig(num_features=6, growth_rate=4, num_blocks=2, num_layers=2)
BATCH, PATCH = 5, 8


@pytest.fixture
def cuda(monkeypatch):
    return Cuda(monkeypatch)


def make_step(kind: str = "adam") -> tuple[RDN, TrainStep]:
    torch.manual_seed(0)
    model = RDN(TINY, "naive")
    adam = kind == "adam"
    optimizer = devices.adam(model.parameters(), CPU, 1e-3, 0.0) if adam else Muon(model, CPU, 1e-3, 0.0)
    return model, TrainStep(model, optimizer, make_optimizer_step(optimizer, CPU, 1.0), CPU)


def make_captured_step(cuda, monkeypatch, kind: str = "adam") -> tuple[RDN, TrainStep]:
    def graphed(function, device):
        return CudaGraphed(cuda.records(function, shapes=((), ())), torch.device("cuda"))

    with monkeypatch.context() as patch:
        patch.setattr(devices, "CudaGraphed", graphed)
        return make_step(kind)


def run(step: TrainStep, sizes: list[int], **options) -> list[tuple[float, float]]:
    """Return (share of the loss, skip flag) of steps on batches of these sizes."""
    generator, results = torch.Generator().manual_seed(1), []
    for size in sizes:
        lr = torch.rand(size, 3, PATCH, PATCH, generator=generator)
        hr = torch.rand(size, 3, 2 * PATCH, 2 * PATCH, generator=generator)
        share, skipped = step(lr, hr, torch.tensor(1 / hr.numel()), **options)
        results.append((share.item(), skipped.item()))
    return results


def assert_equal(model: RDN, other: RDN) -> None:
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5, msg=lambda told, name=name: f"{name}: {told}")


@pytest.mark.parametrize("kind", ["adam", "muon"])
@pytest.mark.parametrize("sizes", [[5, 5, 5, 5, 2, 5, 1], [5, 2, 5, 2, 5], [3, 5, 5, 5], [2, 2, 2, 2]])
def test_a_smaller_batch_replays_the_same_graph_and_trains_the_same(sizes, kind, cuda, monkeypatch):
    (plain, plain_step), (model, step) = make_step(kind), make_captured_step(cuda, monkeypatch, kind)
    expected = run(plain_step, sizes)
    found = run(step, sizes, size=BATCH)
    assert found == [(pytest.approx(share, rel=1e-5), skipped) for share, skipped in expected]
    assert_equal(model, plain)
    calls = [entry for entry in cuda.log if "waits" not in entry]
    replays = len(sizes) - CudaGraphed.EAGER
    assert calls == [*["call on side"] * CudaGraphed.EAGER, "capture on side", *["replay on main"] * replays]


class Launches(TorchDispatchMode):
    """The operators that compute something, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if not function.is_view:
            self.names.append(function.name())
        return function(*arguments, **(options or {}))


def test_beside_the_graph_a_step_fills_a_batch_and_copies_it(cuda, monkeypatch):
    _, step = make_captured_step(cuda, monkeypatch)
    run(step, [BATCH] * (CudaGraphed.EAGER + 1), size=BATCH)
    _, inputs, _ = cuda.recorded[-1]
    cuda.recorded[-1] = lambda *_: (), inputs, ()  # a replay that computes nothing
    weight, names = torch.ones(()), {}
    for size in (BATCH, 2):
        lr, hr = torch.rand(size, 3, PATCH, PATCH), torch.rand(size, 3, 2 * PATCH, 2 * PATCH)
        with Launches() as launches:
            step(lr, hr, weight, size=BATCH)
        names[size] = launches.names
    copied = ["aten::repeat", "aten::_foreach_copy_"]
    assert names[BATCH] == copied
    assert names[2] == [copied[0], "aten::cat", "aten::cat", "aten::constant_pad_nd", copied[1]]


def test_where_nothing_is_captured_a_smaller_batch_is_not_filled(cuda, monkeypatch):
    """Not after a capture that failed, either: then filling would only cost."""
    (plain, plain_step), sizes = make_step(), [5, 5, 5, 2]
    expected = run(plain_step, sizes)

    def refuse():
        raise RuntimeError("not permitted")

    cuda.during_capture = refuse
    model, step = make_captured_step(cuda, monkeypatch)
    shapes = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda x: shapes.append(len(x)) or forward(x))
    assert run(step, sizes, size=BATCH) == [(pytest.approx(share, rel=1e-5), skipped) for share, skipped in expected]
    assert shapes == sizes
    assert_equal(model, plain)
    other, step = make_step()  # on a CPU: byte for byte, whatever the usual size
    assert run(step, sizes, size=BATCH) == expected
    assert all(map(torch.equal, other.parameters(), plain.parameters()))


def test_patches_of_weight_0_change_neither_loss_nor_gradients():
    y, hr = torch.rand(4, 3, 6, 6, requires_grad=True), torch.rand(4, 3, 6, 6)
    weights = torch.tensor([0.5, 0.5, 0.0, 0.0])
    loss = weighted_loss(y, hr, weights)
    (gradient,) = torch.autograd.grad(loss, y)
    few = y[:2].detach().requires_grad_()
    expected = weighted_loss(few, hr[:2], 0.5)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert torch.equal(gradient[:2], torch.autograd.grad(expected, few)[0])
    assert not gradient[2:].any()
