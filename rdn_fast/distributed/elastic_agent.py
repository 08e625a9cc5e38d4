"""torchrun's agent, less the restarts that cannot help, and with a line for each one that it makes."""

from __future__ import annotations

import signal
import socket
import time

from torch.distributed.elastic.agent.server.api import DEFAULT_ROLE, RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousConnectionError

from rdn_fast.errors import RETRY
from rdn_fast.terminal import print_line

_LEAVE_SECONDS = 30.0  # after another node has closed the run: our ranks should notice by themselves within this time
_EXIT_SECONDS = 5  # after the first failure: ranks that end later were killed by the agent


def root_failure(failures: dict[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """Return the (rank, failure) that explains the end of the run.

    A user's mistake (exit code 2) comes first, ranks that the agent terminated last, death by a signal before an exit
    code.
    """
    last_own_exit = min(failure.timestamp for failure in failures.values()) + _EXIT_SECONDS

    def order(item: tuple[int, ProcessFailure]) -> tuple[bool, bool, bool]:
        _, failure = item
        by_agent = failure.exitcode == -signal.SIGTERM or failure.timestamp > last_own_exit
        return failure.exitcode != 2, by_agent, failure.exitcode >= 0

    return min(failures.items(), key=order)


def rank_name(rank: int) -> str:
    return f"rank {rank} ({socket.gethostname()})"


class ElasticAgent(LocalElasticAgent):
    """Restarts ranks only where that can help.

    A user's mistake, a failure of the training and a signal to stop would end the restarted ranks the same way.
    """

    _closed_at: float | None = None  # when the rendezvous was first seen closed

    def run(self, role: str = DEFAULT_ROLE) -> RunResult:
        try:
            result = super().run(role)
        except RendezvousConnectionError:
            if self._worker_group.state != WorkerState.HEALTHY:
                raise
            # super().run() has ended all ranks. Their exit codes may say more than that the store is gone.
            result = super()._monitor_workers(self._worker_group)
            if {failure.exitcode for failure in result.failures.values()} == {-signal.SIGTERM}:
                raise
        return result or RunResult(WorkerState.SUCCEEDED)  # None: a spare node beyond the maximum

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.state == WorkerState.HEALTHY:
            self._leave_closed_run()
        elif result.state == WorkerState.FAILED:
            codes = {failure.exitcode for failure in result.failures.values()}
            # By the agent's SIGTERM a rank dies that has already lost contact and still asks the store who is silent.
            if codes <= {RETRY, 128 + signal.SIGTERM, -signal.SIGTERM} and self._rdzv_handler.num_nodes_waiting():
                # Another node restarts or joins. HEALTHY makes ours join it without using up one of its restarts.
                return RunResult(WorkerState.HEALTHY)
            if any(code > 0 and code != RETRY for code in codes):
                self._remaining_restarts = 0
            elif self._remaining_restarts:
                self._print_restart(result)
        return result

    def _leave_closed_run(self) -> None:
        """Leave a run that another node has closed for good; our ranks might wait for its ranks until a timeout."""
        if self._closed_at is None and self._rdzv_handler.is_closed():
            self._closed_at = time.monotonic()
        if self._closed_at is not None and time.monotonic() - self._closed_at > _LEAVE_SECONDS:
            raise RendezvousClosedError

    def _print_restart(self, result: RunResult) -> None:
        rank, failure = root_failure(result.failures)
        by_signal = failure.exitcode < 0
        what = f"was killed by signal {-failure.exitcode}" if by_signal else "failed or lost contact, as it says itself"
        most = self._worker_group.spec.max_restarts
        number = most - self._remaining_restarts + 1
        print_line(f"{rank_name(rank)} {what}; restart {number} of {most}, from the last checkpoint")
