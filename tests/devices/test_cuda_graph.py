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


class Cuda:
    """Stands in for torch.cuda. `log`: what was done, in order; `current`: the current stream."""

    class Stream:
        def __init__(self, cuda, name):
            self.cuda, self.name = cuda, name

        def wait_stream(self, other):
            self.cuda.log.append(f"{self.name} waits for {other.name}")

    def __init__(self, monkeypatch, during_capture=lambda: None):
        self.log, self.capturing, self.during_capture, self.recorded = [], False, during_capture, []
        self.main = self.current = self.Stream(self, "main")
        cuda = self

        class Graph:
            def replay(self):
                cuda.log.append(f"replay on {cuda.current.name}")
                step, inputs, outputs = cuda.recorded[-1]
                for output, value in zip(outputs, step(*inputs), strict=True):
                    output.copy_(value)

        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.Stream(self, "side"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.stream)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", self.graph)

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def graph(self, graph, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"  # the loader's threads go on
        self.during_capture()
        with self.stream(stream):
            self.capturing = True
            yield
            self.capturing = False

    def records(self, step):
        """Return a function that computes step, except in a capture, where it is recorded and computes nothing."""

        def recording(*inputs):
            self.log.append(f"{'capture' if self.capturing else 'call'} on {self.current.name}")
            if not self.capturing:
                return step(*inputs)
            outputs = tuple(torch.full((2,), float("nan")) for _ in range(2))
            self.recorded.append((step, inputs, outputs))
            return outputs

        return recording


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
