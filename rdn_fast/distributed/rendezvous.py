"""Several nodes: check --nnodes, --rdzv-endpoint and --rdzv-id, and open or reach the store at the endpoint."""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

import torch.distributed as dist

from rdn_fast.errors import Failure, UserError
from rdn_fast.terminal import print_line

JOIN_TIMEOUT = 600  # seconds that a node waits for the others, which may still be fetching their container
_ANSWER_TIMEOUT = 10  # seconds in which a store that is there answers


@dataclass(frozen=True)
class Nodes:
    """The number of nodes and their rendezvous, the same on every node. Raises UserError for flags that do not fit."""

    nnodes: str = "1"  # N or MIN:MAX
    rdzv_endpoint: str | None = None  # HOST:PORT
    rdzv_id: str | None = None

    def __post_init__(self):
        if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", self.nnodes) or self.min_nodes > self.max_nodes:
            raise UserError(f"--nnodes {self.nnodes}: give the number of nodes, or MIN:MAX, for example 2 or 2:4")
        for flag, value in (("--rdzv-endpoint", self.rdzv_endpoint), ("--rdzv-id", self.rdzv_id)):
            if self.max_nodes == 1 and value is not None:
                raise UserError(f"{flag} {value}: is for several nodes; give --nnodes, too, or leave it out")
        if self.max_nodes == 1:
            return
        if self.rdzv_endpoint is None:
            remedy = "give --rdzv-endpoint HOST:PORT, one node and a free port of it, the same on every node"
            raise UserError(f"--nnodes {self.nnodes}: {remedy}")
        is_address = re.fullmatch(r"(\[[\w:.]+\]|[\w.-]+):\d{1,5}", self.rdzv_endpoint)
        if not is_address or not 0 < self.host_and_port[1] < 2**16:
            raise UserError(f"--rdzv-endpoint {self.rdzv_endpoint}: must be HOST:PORT, for example node0:29500")

    @property
    def min_nodes(self) -> int:
        return int(self.nnodes.partition(":")[0])

    @property
    def max_nodes(self) -> int:
        return int(self.nnodes.rpartition(":")[2])

    @property
    def host_and_port(self) -> tuple[str, int]:
        host, _, port = self.rdzv_endpoint.rpartition(":")
        return host.strip("[]"), int(port)

    def open_store(self) -> dist.Store | None:
        """Open the store at the endpoint if it is this node's and no other launcher has; else wait for it, return None.

        The store lives as long as the returned object. Raises Failure when nobody answers within JOIN_TIMEOUT, and
        UserError when what answers is no store.
        """
        host, port = self.host_and_port
        if _is_local(host):
            with suppress(RuntimeError):  # the port is taken, by the store of another launcher perhaps
                return dist.TCPStore(host, port, is_master=True, multi_tenant=True, wait_for_workers=False)
        self._wait_for_listener(host, port)
        if not _is_store(host, port):
            problem = f"what listens there is no launcher of this run; choose a free port of {host}"
            raise UserError(f"--rdzv-endpoint {self.rdzv_endpoint}: {problem}")
        return None

    def _wait_for_listener(self, host: str, port: int) -> None:
        deadline, printed = time.monotonic() + JOIN_TIMEOUT, False
        while (error := _connection_error(host, port)) is not None:
            reason = error.strerror or error
            if not printed:
                print_line(f"waiting for {self.rdzv_endpoint} ({reason}), {JOIN_TIMEOUT} s at most")
                printed = True
            if time.monotonic() > deadline:
                raise Failure(
                    f"--rdzv-endpoint {self.rdzv_endpoint}: nobody has answered there for {JOIN_TIMEOUT} s ({reason}); "
                    f"start the same command on {host}, and see that the name and the port can be reached from here"
                )
            time.sleep(1)


def _is_local(host: str) -> bool:
    """Return whether `host` is this node: only a node's own addresses can be bound."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        socket.create_server(address, family=family).close()
    except OSError:
        return False
    return True


def _connection_error(host: str, port: int) -> OSError | None:
    try:
        socket.create_connection((host, port), timeout=_ANSWER_TIMEOUT).close()
    except OSError as error:
        return error
    return None


def _is_store(host: str, port: int) -> bool:
    """Return whether a store listens there. Asks in a thread: torch's client waits forever if none answers."""
    answered = threading.Event()

    def connect() -> None:
        with suppress(RuntimeError):
            dist.TCPStore(host, port, is_master=False)
            answered.set()

    threading.Thread(target=connect, daemon=True).start()
    return answered.wait(_ANSWER_TIMEOUT)
