"""The backend `hccl` of torch.distributed: gloo, on the device's memory."""

from __future__ import annotations

import torch
import torch.distributed as dist

# A process group's methods, and gloo's names for them.
_COLLECTIVES = {
    **{
        name: name
        for name in (
            "allgather",
            "allreduce",
            "allreduce_coalesced",
            "alltoall",
            "broadcast",
            "gather",
            "recv",
            "reduce",
        )
    },
    **{name: name for name in ("reduce_scatter", "scatter", "send")},
    "all_gather_single": "_allgather_base",
    "all_to_all_single": "alltoall_base",
    "reduce_scatter_single": "_reduce_scatter_base",
}


class _Done(dist._Work):
    """A collective that is over."""

    def __init__(self, tensors: list):
        super().__init__()
        self._future = torch.futures.Future()
        self._future.set_result(tensors)

    def wait(self, timeout=None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def get_future(self) -> torch.futures.Future:
        return self._future


class Hccl(dist.ProcessGroup):
    """Each collective waits for the work that the current stream has been given, and is over when it returns."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout):
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout=timeout)

    def getBackendName(self) -> str:
        return "hccl"

    def _get_backend(self, device: torch.device):
        return self._gloo

    def barrier(self, opts=None) -> _Done:
        torch.accelerator.synchronize()
        self._gloo.barrier().wait()
        return _Done([])


def _on_host(value):
    """The same nesting of lists with every npu tensor as a CPU tensor on its memory."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "npu":
            raise ValueError(f"hccl: a tensor is on {value.device}, not on an npu")
        return torch.ops.fake_npu.on_host(value.detach())
    return [_on_host(item) for item in value] if isinstance(value, (list, tuple)) else value


def _collective(name: str):
    def run(self, *arguments, **options) -> _Done:
        getattr(self._gloo, name)(*map(_on_host, arguments), *options.values()).wait()
        first = arguments[0] if arguments and isinstance(arguments[0], (list, tuple)) else []
        return _Done(list(first))

    return run


for _name, _gloo_name in _COLLECTIVES.items():
    setattr(Hccl, _name, _collective(_gloo_name))


def register() -> None:
    dist.Backend.register_backend("hccl", Hccl, devices=["npu"])
