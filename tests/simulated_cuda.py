"""A stand-in for CUDA's streams and graphs: a capture records a call and computes nothing, a replay makes it."""

from contextlib import contextmanager

import torch


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

    def records(self, step, shapes=((2,), (2,))):
        """Return a function that computes step, except in a capture, where it is recorded and computes nothing.

        shapes: of the tensors that it returns.
        """

        def recording(*inputs):
            self.log.append(f"{'capture' if self.capturing else 'call'} on {self.current.name}")
            if not self.capturing:
                return step(*inputs)
            outputs = tuple(torch.full(shape, float("nan")) for shape in shapes)
            self.recorded.append((step, inputs, outputs))
            return outputs

        return recording
