"""Muon against float64 arithmetic written out, its skipped steps and its resumes."""

import copy

import pytest
import torch
from runs import TINY, command, events, make_data

from rdn_fast.cli import main
from rdn_fast.config import ModelConfig
from rdn_fast.model import RDN
from rdn_fast.training.muon import Muon, orthogonalized
from rdn_fast.training.optimizer_step import OptimizerStep, SyncingOptimizerStep, make_optimizer_step

CPU = torch.device("cpu")
SHAPES = ModelConfig(num_features=6, growth_rate=4, num_blocks=2, num_layers=2)  # rows of 4, 6 and 24
LR, DECAY = 0.02, 0.1


def five_passes(x: torch.Tensor) -> torch.Tensor:
    """The quintic as published, on the matrix itself, float64."""
    x = x.double() / x.double().norm()
    if len(x) > x.shape[1]:
        return five_passes(x.T).T
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


@pytest.mark.parametrize(("rows", "columns"), [(48, 432), (48, 48), (64, 9), (1, 7), (12, 1)])
@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-7], ids=str)  # singular value, of the largest
def test_orthogonalized_is_the_published_iteration(rows, columns, smallest):
    count = min(rows, columns)
    values = torch.logspace(0, torch.tensor(smallest).log10().item(), count)
    matrices = [
        torch.linalg.qr(torch.randn(rows, count))[0] * values @ torch.linalg.qr(torch.randn(columns, count))[0].T * size
        for size in (1.0, 1e-6, 1e3)
    ]
    for found, given in zip(orthogonalized(matrices), matrices, strict=True):
        expected = five_passes(given)
        # X X^T in float32 knows the square of a small singular value to 2^-24 of the largest's.
        assert (found - expected).norm() <= (1e-5 if smallest == 1 else 2e-3) * expected.norm()
        if smallest == 1:
            assert all(0.6 < value < 1.25 for value in torch.linalg.svdvals(found))


def test_a_gradient_of_zeros_gives_no_step():
    zero, other = orthogonalized([torch.zeros(4, 9), torch.randn(4, 9)])
    assert not zero.any()
    assert other.isfinite().all()
    assert other.any()


class Oracle:
    """Both kinds of steps in float64, parameter by parameter, by their published formulas."""

    def __init__(self, model: RDN):
        self.params = {name: p.detach().double() for name, p in model.named_parameters()}
        self.state = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.params.items()}
        self.steps = 0

    def step(self, gradients: dict[str, torch.Tensor]) -> None:
        self.steps += 1
        for name, gradient in gradients.items():
            p, (first, second) = self.params[name], self.state[name]
            g = gradient.double() + DECAY * p
            if p.dim() == 4 and name not in ("sfe1.weight", "output.weight"):
                first = 0.95 * first + 0.05 * g
                rows = (0.05 * g + 0.95 * first).flatten(1)
                change = 0.2 * max(rows.shape) ** 0.5 * five_passes(rows).reshape(p.shape)
            else:
                first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
                change = first / (1 - 0.9**self.steps) / ((second / (1 - 0.999**self.steps)).sqrt() + 1e-8)
            self.params[name], self.state[name] = p - LR * change, (first, second)


def random_gradients(model: RDN) -> dict[str, torch.Tensor]:
    return {name: torch.randn_like(p) for name, p in model.named_parameters()}


def set_gradients(model: RDN, gradients: dict[str, torch.Tensor], scale: float) -> None:
    for name, p in model.named_parameters():
        p.grad = torch.empty_like(p).copy_(gradients[name] * scale)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("fused", [True, False])
def test_steps_are_the_published_ones(scale, memory_format, fused, monkeypatch):
    if not fused:
        monkeypatch.setattr("rdn_fast.devices.supports_foreach", lambda device: False)  # as on npu
    model = RDN(SHAPES).to(memory_format=memory_format)
    oracle, optimizer = Oracle(model), Muon(model, CPU, LR, DECAY)
    step = make_optimizer_step(optimizer, CPU, scale)
    assert type(step) is (OptimizerStep if fused else SyncingOptimizerStep)
    for _ in range(4):
        gradients = random_gradients(model)
        set_gradients(model, gradients, scale)
        if not fused:
            step._scaler.scale(torch.zeros(()))  # as backward() does
        assert step.step() == 0
        oracle.step(gradients)
    for name, p in model.named_parameters():
        moved = (oracle.params[name] - p).abs().max() / oracle.params[name].abs().max()
        assert moved < 1e-5, name


@pytest.mark.parametrize("flaw", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["rdbs.1.layers.0.conv.weight", "output.weight", "sfe2.bias"])
def test_a_skipped_step_changes_nothing(name, flaw):
    model = RDN(SHAPES).to(memory_format=torch.channels_last)
    optimizer = Muon(model, CPU, LR, DECAY)
    step = make_optimizer_step(optimizer, CPU, 8.0)
    set_gradients(model, random_gradients(model), 8.0)
    assert step.step() == 0
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict()["state"]])
    gradients = random_gradients(model)
    gradients[name][-1] = flaw
    set_gradients(model, gradients, 8.0)
    assert step.step() == 1
    weights, state = model.state_dict(), optimizer.state_dict()["state"]
    assert all(torch.equal(weights[key], value) for key, value in before[0].items())
    for number, slots in before[1].items():
        assert all(torch.equal(state[number][key], value) for key, value in slots.items())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def run(data, out, *flags) -> list[str]:
    words = ("--batch-size", 4, "--epochs", 4, "--eval-every", 50, "--opt-level", "O0", "--rdb", "naive", *flags)
    return command("train", "--data-path", data, "--outputs-dir", out, *TINY, *words)[3:]


MUON = ("--optimizer", "muon", "--ema", "0.9", "--weight-decay", "1e-4")


def test_a_resume_is_exact(data, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(run(data, whole, *MUON)) == 0
    assert main(run(data, out, *MUON, "--max-steps", 9)) == 0
    assert main(run(data, out, *MUON, "--resume", "auto")) == 0
    assert [record["step"] for record in events(out, "resume")] == [9]
    assert (out / "last.pth").read_bytes() == (whole / "last.pth").read_bytes()
    assert events(out, "step") == events(whole, "step")


def test_a_resume_keeps_the_optimizer(data, tmp_path, capsys):
    assert main(run(data, tmp_path, "--max-steps", 2)) == 0
    capsys.readouterr()
    assert main(run(data, tmp_path, "--resume", "auto", "--optimizer", "muon")) == 2
    assert "optimizer was adam, now muon" in capsys.readouterr().err
    newest = max(tmp_path.glob("checkpoints/*"))
    checkpoint = torch.load(newest, weights_only=True)
    del checkpoint["settings"]["optimizer"]  # as older versions wrote it
    torch.save(checkpoint, newest)
    assert main(run(data, tmp_path, "--resume", "auto", "--optimizer", "muon")) == 2
    assert "optimizer was adam, now muon" in capsys.readouterr().err
    assert main(run(data, tmp_path, "--resume", "auto", "--max-steps", 4)) == 0


def test_apex_is_refused(data, tmp_path, capsys):
    assert main(run(data, tmp_path, *MUON, "--amp-backend", "apex")) == 2
    assert "--optimizer muon: not with --amp-backend apex" in capsys.readouterr().err
