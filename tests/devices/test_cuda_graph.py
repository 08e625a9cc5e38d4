"""CudaGraphed with a stand-in for CUDA's graphs, which records a call and replays it."""

import pytest
import torch
from simulated_cuda import Cuda

from rdn_fast.devices import CudaGraphed
from rdn_fast.training.throughput import WARM_UP

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


class Step:
    """A function that adds its inputs to a total and counts its calls."""

    def __init__(self):
        self.calls, self.total = 0, torch.zeros(2)

    def __call__(self, a, b):
        self.calls += 1
        self.total += a + b
        return self.total.clone(), a * b


@pytest.fixture
def cuda(monkeypatch):
    return Cuda(monkeypatch)


def test_a_graph_uses_the_inputs_of_each_call(cuda):
    step = Step()
    replayed = CudaGraphed(cuda.records(step), CUDA)
    total = torch.zeros(2)
    for i in range(CudaGraphed.EAGER + 4):
        a, b = torch.rand(2), torch.rand(2)
        total = total + a + b
        seen, product = replayed(a, b)
        torch.testing.assert_close(seen, total)
        torch.testing.assert_close(product, a * b)
        assert step.calls == i + 1  # one step per call: the capture does none


def test_the_capture_is_part_of_the_warm_up():
    assert CudaGraphed.EAGER < WARM_UP


def test_on_other_devices_it_is_a_plain_call():
    step = Step()
    replayed = CudaGraphed(step, CPU)
    for _ in range(CudaGraphed.EAGER + 2):
        replayed(torch.ones(2), torch.ones(2))
    assert step.calls == CudaGraphed.EAGER + 2


def test_warm_up_and_capture_are_on_one_side_stream_and_no_stream_runs_ahead(cuda):
    replayed = CudaGraphed(cuda.records(Step()), CUDA)
    for _ in range(CudaGraphed.EAGER + 2):
        replayed(torch.ones(2), torch.ones(2))
    eager = ["side waits for main", "call on side", "main waits for side"]
    assert cuda.log == [*eager * CudaGraphed.EAGER, "capture on side", *["replay on main"] * 2]


def test_a_function_without_tensors_is_replayed(cuda):
    step, x = Step(), torch.ones(2)
    replayed = CudaGraphed(cuda.records(lambda: step(x, x)), CUDA)
    for _ in range(CudaGraphed.EAGER + 3):
        replayed()
    assert step.total.tolist() == [2 * step.calls] * 2
    assert step.calls == CudaGraphed.EAGER + 3


class PTXASError(Exception):
    """No RuntimeError, as Triton's."""


@pytest.mark.parametrize("kind", [RuntimeError, PTXASError])
def test_a_capture_that_fails_is_reported_once_and_no_step_is_lost(kind, monkeypatch, capsys):
    def refuse():
        raise kind("operation not permitted when stream is capturing\nmore")

    cuda = Cuda(monkeypatch, during_capture=refuse)
    step = Step()
    replayed = CudaGraphed(cuda.records(step), CUDA)
    for _ in range(CudaGraphed.EAGER + 3):
        replayed(torch.ones(2), torch.ones(2))
    assert step.calls == CudaGraphed.EAGER + 3
    out = capsys.readouterr().out
    assert out.startswith("note: the step cannot be captured")
    assert "operation not permitted when stream is capturing" in out
    assert out.count("\n") == 1
    assert cuda.log[-3:] == ["call on main"] * 3
