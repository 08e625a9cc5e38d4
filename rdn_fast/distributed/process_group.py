"""The ranks of a run: who I am, and the few words that ranks exchange on the host (never through the device's queue)."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from rdn_fast import devices
from rdn_fast.errors import UserError

HOST = "gloo"  # the backend of messages on the host, whatever the devices speak
LAUNCH_VARIABLE = (
    "RDN_FAST_LAUNCH"  # the variable that names the launch which a rank was started by, the same for all its starts
)
TIMEOUT = 600.0  # seconds that a rank waits for the others: the first one may time and compile for minutes; who hangs for longer ends the run
_GRACE = 5.0  # seconds in which all ranks that wait run into that timeout


class Ranks:
    """One process, or the ranks that torchrun started. Host messages go over gloo, gradients over the device's backend."""

    def __init__(self):
        """Reads torchrun's environment; connects nothing yet."""
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.launched = "TORCHELASTIC_RUN_ID" in os.environ
        several = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
        self.local_rank = int(os.environ["LOCAL_RANK"]) if several else None  # None: the only one of this node
        self._parent = os.getppid()
        self._host = self._store = None

    @property
    def is_rank0(self) -> bool:
        return self.rank == 0

    def connect(self, device: torch.device) -> None:
        """Join the process group (a single process has none)."""
        if self.world > 1:
            backend, timeout = devices.process_group_backend(device), timedelta(seconds=TIMEOUT)
            self._sent = time.monotonic()
            self._store, *_ = next(dist.rendezvous("env://", timeout=timeout))
            dist.init_process_group(
                backend,
                store=self._store,
                rank=self.rank,
                world_size=self.world,
                timeout=timeout,
                device_id=None if backend == HOST else device,
            )
            self._host = dist.group.WORLD if backend == HOST else dist.new_group(backend=HOST, timeout=timeout)
            self._store.set(f"node of rank {self.rank}", socket.gethostname())

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def describe_lost_rank(self, error: RuntimeError) -> str | None:
        """What an error of a message that another rank did not answer comes to, in words; None for any other error."""
        if self.world == 1 or not (
            isinstance(error, dist.DistError) or any(name in str(error).lower() for name in (HOST, self._backend()))
        ):
            return None
        if time.monotonic() - self._sent < TIMEOUT:
            return "lost contact with another rank, whose own message says why"
        return f"no answer for {TIMEOUT:g} s from {' and '.join(self._silent_ranks()) or 'another rank'}"

    def _silent_ranks(self) -> list[str]:
        """The ranks that do not even say that they, too, have waited in vain."""
        store = self._store
        with suppress(RuntimeError, AttributeError):
            store.set_timeout(timedelta(seconds=_GRACE))
            store.set(f"rank {self.rank} waits", "")
            time.sleep(_GRACE)
            silent = [rank for rank in range(self.world) if not store.check([f"rank {rank} waits"])]
            return [f"rank {rank} ({store.get(f'node of rank {rank}').decode()})" for rank in silent]
        return [f"rank 0 ({os.environ['MASTER_ADDR']})"]  # which holds the store

    def agent_died(self) -> bool:
        """Whether the torchrun agent above this rank has died."""
        return self.launched and os.getppid() != self._parent

    def on_rank0(self, function, *args):
        """The first rank's function(*args), on every rank. Its UserError is raised there; the others leave with exit code 2."""
        value = error = None
        if self.is_rank0:
            try:
                value = function(*args)
            except UserError as caught:
                error = caught
        if self.world > 1:
            box = [value, error is not None]
            self._collective(dist.broadcast_object_list, box)
            value, failed = box
            if failed and error is None:
                raise SystemExit(2)
        if error is not None:
            raise error
        return value

    def gather(self, value) -> list:
        """Every rank's value, on every rank."""
        values = [value] * self.world
        if self.world > 1:
            self._collective(dist.all_gather_object, values, value)
        return values

    def launch_ids(self) -> list[str]:
        """The launches that the ranks belong to, one on each node."""
        return sorted({*self.gather(os.environ.get(LAUNCH_VARIABLE))} - {None})

    def all_max(self, *flags: int) -> list[int]:
        """The largest value that any rank gave for each flag."""
        return (
            self._reduce(torch.tensor(flags, dtype=torch.int32), dist.ReduceOp.MAX).tolist()
            if self.world > 1
            else list(flags)
        )

    def all_sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of a host tensor."""
        return self._reduce(values, dist.ReduceOp.SUM) if self.world > 1 else values

    def _reduce(self, values: torch.Tensor, operation) -> torch.Tensor:
        self._collective(dist.all_reduce, values, operation)
        return values

    def _collective(self, collective, *message) -> None:
        self._sent = time.monotonic()
        collective(*message, group=self._host)

    def _backend(self) -> str:
        return dist.get_backend() if dist.is_initialized() else HOST
