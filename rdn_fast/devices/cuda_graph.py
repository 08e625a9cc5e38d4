"""One launch for a whole training step: CUDA graphs."""

from __future__ import annotations

import torch

from rdn_fast.errors import what_failed
from rdn_fast.terminal import print_line


class CudaGraphed:
    """function(*tensors) -> tensors, replayed as one CUDA graph after `EAGER` calls; on other devices a plain call.

    A graph repeats what it recorded. Every call takes tensors of the same shapes; the function must not synchronize
    with the host and must not keep its tensors. The next call overwrites the returned tensors.
    """

    # Eager calls in which libraries choose kernels and the optimizer creates its state. throughput.WARM_UP covers them.
    EAGER = 2

    def __init__(self, function, device: torch.device):
        self._function, self._capture, self._calls, self._graph = function, device.type == "cuda", 0, None

    def __call__(self, *tensors):
        self._calls += 1
        if not self._capture or self._calls <= self.EAGER:
            return self._function(*tensors)
        if self._graph is None:
            self._inputs, graph = [t.clone() for t in tensors], torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    self._outputs = self._function(*self._inputs)
            except RuntimeError as error:
                cannot = "cannot be captured as a CUDA graph and is launched kernel by kernel"
                print_line(f"note: the step {cannot}: {what_failed(error)}")
                self._capture = False
                return self._function(*tensors)
            self._graph = graph
        else:
            torch._foreach_copy_(self._inputs, tensors)
        self._graph.replay()
        return self._outputs
