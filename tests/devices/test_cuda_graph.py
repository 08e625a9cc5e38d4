"""CudaGraphed with a stand-in for CUDA's graphs, which records a call and replays it."""

from contextlib import contextmanager

import pytest
import torch

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
def graphs(monkeypatch):
    """Return graphs(step): torch.cuda captures that step, and a replay calls it with the tensors of the capture."""
    captured = []

    class Graph:
        def replay(self):
            step, inputs, outputs = captured[-1]
            for output, value in zip(outputs, step(*inputs), strict=True):
                output.copy_(value)

    @contextmanager
    def capture(graph):
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)

    def of(step):
        def recording(*inputs):
            if not captured and step.calls == CudaGraphed.EAGER:  # the capture: records, computes nothing
                outputs = tuple(torch.full((2,), float("nan")) for _ in range(2))
                captured.append((step, inputs, outputs))
                return outputs
            return step(*inputs)

        return recording

    return of


def test_a_graph_uses_the_inputs_of_each_call(graphs):
    step = Step()
    replayed = CudaGraphed(graphs(step), CUDA)
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


def test_a_capture_that_fails_is_reported_once_and_no_step_is_lost(monkeypatch, capsys):
    @contextmanager
    def refuses(graph):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", refuses)
    step = Step()
    replayed = CudaGraphed(step, CUDA)
    for _ in range(CudaGraphed.EAGER + 3):
        replayed(torch.ones(2), torch.ones(2))
    assert step.calls == CudaGraphed.EAGER + 3
    out = capsys.readouterr().out
    assert "operation not permitted when stream is capturing" in out
    assert out.count("\n") == 1
