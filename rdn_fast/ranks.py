"""The ranks of a run: who I am, and the few words that ranks exchange on the host (never through the device's queue)."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from rdn_fast import device as devices
from rdn_fast.errors import UserError


class Ranks:
    """One process, or the ranks that torchrun started. Host messages go over gloo, gradients over the device's backend."""

    def __init__(self):
        """Reads torchrun's environment; connects nothing yet."""
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.launched = "TORCHELASTIC_RUN_ID" in os.environ
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0")) if self.launched else None
        self._parent = os.getppid()
        self._host = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def connect(self, device: torch.device) -> None:
        """Join the process group (a single process has none)."""
        if self.world > 1:
            backend = devices.process_group_backend(device)
            dist.init_process_group(backend, device_id=None if backend == "gloo" else device)
            self._host = dist.group.WORLD if backend == "gloo" else dist.new_group(backend="gloo")

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def lost(self, error: RuntimeError) -> bool:
        """Whether the error is of a message that another rank did not answer."""
        return self.world > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error).lower())

    def orphaned(self) -> bool:
        """Whether the torchrun agent above this rank has died."""
        return self.launched and os.getppid() != self._parent

    def on_first(self, function, *args):
        """The first rank's function(*args), on every rank. Its UserError is raised there; the others leave with exit code 2."""
        value = error = None
        if self.first:
            try:
                value = function(*args)
            except UserError as caught:
                error = caught
        if self.world > 1:
            box = [value, error is not None]
            dist.broadcast_object_list(box, group=self._host)
            value, failed = box
            if failed and error is None:
                raise SystemExit(2)
        if error is not None:
            raise error
        return value

    def agree(self, *flags: int) -> list[int]:
        """The largest value that any rank gave for each flag."""
        return self._reduce(torch.tensor(flags, dtype=torch.int32), dist.ReduceOp.MAX).tolist() if self.world > 1 else list(flags)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of a host tensor."""
        return self._reduce(values, dist.ReduceOp.SUM) if self.world > 1 else values

    def _reduce(self, values: torch.Tensor, operation) -> torch.Tensor:
        dist.all_reduce(values, operation, group=self._host)
        return values
