"""One launch for a whole training step: CUDA graphs."""

from __future__ import annotations

import torch

from rdn_fast.errors import what_failed
from rdn_fast.terminal import print_line


class CudaGraphed:
    """function(*tensors) -> tensors, replayed as one CUDA graph after `EAGER` calls; on other devices a plain call.

    A graph repeats what it recorded. Every call takes tensors of the same shapes; the function must not synchronize
    with the host and must not keep its tensors. The next call overwrites the returned tensors.

    The eager calls and the capture run on one side stream, as torch asks of a capture: what libraries and autograd
    prepare in the first calls belongs to a stream. Replays run on the current stream.
    """

    # Eager calls in which libraries choose kernels and the optimizer creates its state. throughput.WARM_UP covers them.
    EAGER = 2

    def __init__(self, function, device: torch.device, what: str = "the step"):
        """what: names the function in the note that it cannot be captured."""
        self._function, self._device, self._what, self._calls, self._graph = function, device, what, 0, None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def captures(self) -> bool:
        """Whether calls are captured; False on other devices, and once a capture has failed."""
        return self._stream is not None

    def prepare(self, *tensors) -> None:
        """Make the calls that come before the first replay, and the capture; elsewhere none. They do their work."""
        while self.captures and self._graph is None:
            self(*tensors)

    def __call__(self, *tensors):
        self._calls += 1
        if not self.captures:
            return self._function(*tensors)
        if self._calls <= self.EAGER:
            return self._on_side_stream(*tensors)
        if self._graph is None:
            self._inputs, graph = [t.clone() for t in tensors], torch.cuda.CUDAGraph()
            try:
                # thread_local: other threads may pin memory and query events meanwhile, as the loader's do.
                with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                    self._outputs = self._function(*self._inputs)
            except Exception as error:  # a call that synchronizes, memory, whatever a kernel's compiler raises
                cannot = "cannot be captured as a CUDA graph and is launched kernel by kernel"
                print_line(f"note: {self._what} {cannot}: {what_failed(error)}")
                self._stream = None
                return self._function(*tensors)
            self._graph = graph
        elif tensors:
            torch._foreach_copy_(self._inputs, tensors)
        self._graph.replay()
        return self._outputs

    def _on_side_stream(self, *tensors):
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = self._function(*tensors)
        current.wait_stream(self._stream)
        return outputs
