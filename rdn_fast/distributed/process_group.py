"""The process group of a run: this rank's place in it, and collectives of host values over gloo."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple, NoReturn

import torch
import torch.distributed as dist

from rdn_fast import devices
from rdn_fast.distributed.waiting import NoAnswer, is_own, waiting
from rdn_fast.errors import UserError, one_line

HOST_BACKEND = "gloo"  # for collectives of host values, on every device
LAUNCH_VARIABLE = "RDN_FAST_LAUNCH"  # environment variable: id of the launch, kept when its ranks are restarted
TIMEOUT = 600.0  # seconds a collective may take: rank 0 may autotune and compile for minutes while the others wait
_GRACE = 5.0  # seconds within which the timeouts of all waiting ranks expire
_LONGER = 60.0  # seconds that a device's collectives are given beyond TIMEOUT: the host's name the silent rank


class PendingMax(NamedTuple):
    """An all_max() that goes on in the background."""

    work: dist.Work
    values: torch.Tensor
    start: float

    def is_over(self) -> bool:
        """Return whether wait() would return, or raise, at once."""
        return self.work.is_completed()

    def wait(self) -> list[int]:
        with waiting(self.start):
            self.work.wait()
        return self.values.tolist()


class Ranks:
    """This process among the ranks of a run: a single process, or one of those that torchrun started.

    Collectives of host values use gloo; gradients use the device's backend.
    """

    def __init__(self):
        """Read torchrun's environment. connect() joins the process group."""
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.launched = "TORCHELASTIC_RUN_ID" in os.environ
        shares_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
        self.local_rank = int(os.environ["LOCAL_RANK"]) if shares_node else None  # None: the only rank of this node
        self._parent_pid = os.getppid()
        self._host_group = self._store = None
        self._collective_start = time.monotonic()  # of the last one of the host

    @property
    def is_rank0(self) -> bool:
        return self.rank == 0

    def connect(self, device: torch.device) -> None:
        """Join the process group. Does nothing in a single process."""
        if self.world == 1:
            return
        backend, timeout = devices.process_group_backend(device), timedelta(seconds=TIMEOUT)
        self._collective_start = time.monotonic()
        with waiting():
            self._store, *_ = next(dist.rendezvous("env://", timeout=timeout))
            self._store.set(f"node of rank {self.rank}", socket.gethostname())
            shared = backend == HOST_BACKEND
            dist.init_process_group(
                backend,
                store=self._store,
                rank=self.rank,
                world_size=self.world,
                timeout=timeout if shared else timeout + timedelta(seconds=_LONGER),
                device_id=None if shared else device,
            )
            self._host_group = dist.group.WORLD if shared else dist.new_group(backend=HOST_BACKEND, timeout=timeout)

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def describe_lost_rank(self, error: RuntimeError) -> str | None:
        """Return what a failed collective says about other ranks; None if `error` does not come from a collective."""
        if self.world == 1 or not self._is_from_collective(error):
            return None
        timed_out = self._seconds_of(error) >= TIMEOUT
        if silent := self._silent_ranks(timed_out):
            return f"no answer for {TIMEOUT:g} s from {' and '.join(silent)}"
        if timed_out:
            return f"no answer for {TIMEOUT:g} s from another rank"
        if self._host_group is None:  # the reason may be this rank's own: a backend that is not there, a device in use
            return f"cannot connect to the other ranks ({one_line(error)})"
        return "lost contact with another rank, whose own message says why"

    def _is_from_collective(self, error: RuntimeError) -> bool:
        """A device's backend may raise its errors wherever the host waits for the device."""
        if isinstance(error, NoAnswer):
            return True
        if is_own(error):
            return False
        if isinstance(error, dist.DistError):
            return True
        backend = dist.get_backend() if dist.is_initialized() else HOST_BACKEND
        return backend != HOST_BACKEND and backend in str(error).lower()

    def _seconds_of(self, error: RuntimeError) -> float:
        return error.seconds if isinstance(error, NoAnswer) else time.monotonic() - self._collective_start

    def _silent_ranks(self, timed_out: bool) -> list[str]:
        """Return the ranks, with their nodes, that do not report in the store that a collective failed; [] if unknown.

        timed_out: whether this rank waited for TIMEOUT. The first one that did so closes its connections, so that the
        others lose contact to it earlier; they learn from the store why.
        """
        # The store is on rank 0, which waits for all others to open it.
        without_store = [f"rank 0 ({os.environ['MASTER_ADDR']})"] if timed_out and not self.is_rank0 else []
        if self._store is None:
            return without_store
        silent: list[str] = []

        def ask() -> None:
            with suppress(RuntimeError):
                self._store.set_timeout(timedelta(seconds=_GRACE))
                self._store.set(f"rank {self.rank} waits", "")
                if timed_out:
                    self._store.set("timed out", "")
                elif self.world > 2:
                    self._store.wait(["timed out"])
                else:  # the only other rank has closed the connection
                    return
                deadline = time.monotonic() + _GRACE
                while time.monotonic() < deadline:  # rank 0 may leave first, and the store with it
                    ranks = [rank for rank in range(self.world) if not self._store.check([f"rank {rank} waits"])]
                    silent[:] = [self._with_node(rank) for rank in ranks]
                    time.sleep(_GRACE / 20)

        asking = threading.Thread(target=ask, daemon=True)  # it waits for ever for a host that is stopped
        asking.start()
        asking.join(3 * _GRACE)
        return without_store if asking.is_alive() else silent

    def _with_node(self, rank: int) -> str:
        key = f"node of rank {rank}"
        return f"rank {rank} ({self._store.get(key).decode()})" if self._store.check([key]) else f"rank {rank}"

    def agent_died(self) -> bool:
        """Return whether the torchrun agent that started this rank has ended."""
        return self.launched and os.getppid() != self._parent_pid

    def on_rank0(self, function: Callable, *args):
        """Call function(*args) on rank 0 and return its result on every rank. A collective.

        A UserError is raised on rank 0; the other ranks raise SystemExit(2) when rank 0 has ended.
        """
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
                self.leave(2)
        if error is not None:
            raise error
        return value

    def leave(self, code: int) -> NoReturn:
        """Raise SystemExit(code) when rank 0 has ended. For the other ranks: rank 0 says why."""
        with suppress(NoAnswer):  # the first rank that leaves makes the agent end the others
            self._collective(dist.recv, torch.empty(1), 0)
        raise SystemExit(code)

    def gather(self, value) -> list:
        """Return every rank's value, in the order of ranks, on every rank. A collective."""
        values = [value] * self.world
        if self.world > 1:
            self._collective(dist.all_gather_object, values, value)
        return values

    def launch_ids(self) -> list[str]:
        """Return the ids of the launches that started the ranks, one per node. A collective."""
        return sorted({*self.gather(os.environ.get(LAUNCH_VARIABLE))} - {None})

    def all_max(self, *flags: int) -> list[int]:
        """Return the maximum of each flag over all ranks. A collective."""
        if self.world == 1:
            return list(flags)
        return self._all_reduce(torch.tensor(flags, dtype=torch.int32), dist.ReduceOp.MAX).tolist()

    def begin_max(self, *flags: int) -> PendingMax:
        """Begin all_max() of several ranks and return at once. A collective, as all others in the same order."""
        values = torch.tensor(flags, dtype=torch.int32)
        self._collective_start = start = time.monotonic()
        work = dist.all_reduce(values, dist.ReduceOp.MAX, group=self._host_group, async_op=True)
        return PendingMax(work, values, start)

    def all_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a host tensor over all ranks, in place, and return it. A collective."""
        return self._all_reduce(values, dist.ReduceOp.SUM) if self.world > 1 else values

    def _all_reduce(self, values: torch.Tensor, operation) -> torch.Tensor:
        self._collective(dist.all_reduce, values, operation)
        return values

    def _collective(self, function: Callable, *arguments) -> None:
        self._collective_start = time.monotonic()
        with waiting():
            function(*arguments, group=self._host_group)
