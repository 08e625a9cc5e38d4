"""Several nodes: what --nnodes, --rdzv-endpoint and --rdzv-id mean, and the place where the nodes' launchers meet."""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

import torch.distributed as dist

from rdn_fast.errors import Failure, UserError

JOIN_TIMEOUT = 600  # seconds that a node waits for the others, which may still be fetching their container
_ANSWER_TIMEOUT = 10  # seconds in which a launcher that is there answers


@dataclass(frozen=True)
class Nodes:
    """How many nodes a run has, and where they meet; every node is given the same. Raises UserError when the flags make no sense."""

    nnodes: str = "1"  # N or MIN:MAX
    rdzv_endpoint: str | None = None  # HOST:PORT
    rdzv_id: str | None = None

    def __post_init__(self):
        if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", self.nnodes) or self.min_nodes > self.max_nodes:
            raise UserError(f"--nnodes {self.nnodes}: give the number of nodes, or MIN:MAX, for example 2 or 2:4")
        for flag, value in (("--rdzv-endpoint", self.rdzv_endpoint), ("--rdzv-id", self.rdzv_id)):
            if self.max_nodes == 1 and value is not None:
                raise UserError(f"{flag} {value}: is for several nodes; give --nnodes, too, or leave it out")
        if self.max_nodes > 1 and self.rdzv_endpoint is None:
            raise UserError(
                f"--nnodes {self.nnodes}: give --rdzv-endpoint HOST:PORT, one node and a free port of it, the same on every node"
            )
        if self.max_nodes > 1 and not (
            re.fullmatch(r"(\[[\w:.]+\]|[\w.-]+):\d{1,5}", self.rdzv_endpoint) and 0 < self.host_and_port[1] < 2**16
        ):
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
        """Open the store at the endpoint if that is this node's, where no other launcher of it has; else wait for it: None."""
        host, port = self.host_and_port
        if _is_ours(host):
            with suppress(RuntimeError):  # somebody listens there already
                return dist.TCPStore(host, port, is_master=True, multi_tenant=True, wait_for_workers=False)
        deadline, said = time.monotonic() + JOIN_TIMEOUT, False
        while (error := _refused(host, port)) is not None:
            if not said:
                print(
                    f"waiting for {self.rdzv_endpoint} ({error.strerror or error}), {JOIN_TIMEOUT} s at most",
                    flush=True,
                )
            said = True
            if time.monotonic() > deadline:
                raise Failure(
                    f"--rdzv-endpoint {self.rdzv_endpoint}: nobody has answered there for {JOIN_TIMEOUT} s ({error.strerror or error}); "
                    f"start the same command on {host}, and see that the name and the port can be reached from here"
                )
            time.sleep(1)
        if not _answers(host, port):
            raise UserError(
                f"--rdzv-endpoint {self.rdzv_endpoint}: what listens there is no launcher of this run; choose a free port of {host}"
            )
        return None


def _is_ours(host: str) -> bool:
    """Whether the host is this node: only its own addresses can be bound."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        socket.create_server(address, family=family).close()
    except OSError:
        return False
    return True


def _refused(host: str, port: int) -> OSError | None:
    try:
        socket.create_connection((host, port), timeout=_ANSWER_TIMEOUT).close()
    except OSError as error:
        return error
    return None


def _answers(host: str, port: int) -> bool:
    """Whether what listens there is a store. torch's client waits for ever where it is not, hence the thread."""
    answered = threading.Event()

    def ask() -> None:
        with suppress(RuntimeError):
            dist.TCPStore(host, port, is_master=False)
            answered.set()

    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(_ANSWER_TIMEOUT)
