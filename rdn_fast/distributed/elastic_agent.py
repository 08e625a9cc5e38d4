"""torchrun's agent, which also knows when it is of no use to start the ranks anew, and says so when it does."""

from __future__ import annotations

import signal
import socket
import time

from torch.distributed.elastic.agent.server.api import DEFAULT_ROLE, RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousConnectionError

from rdn_fast.errors import RETRY

_LEAVE_SECONDS = (
    30.0  # seconds that our ranks have to find out by themselves that another node has left the run for good
)
_EXIT_SECONDS = 5  # seconds; the agent kills ranks that did not end of themselves after more


def root_failure(failures: dict[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank that ended first, and how: a user's mistake before all, and last those that the agent had to end."""
    prompt = min(end.timestamp for end in failures.values()) + _EXIT_SECONDS

    def order(item: tuple[int, ProcessFailure]):
        _, end = item
        return end.exitcode != 2, end.exitcode == -signal.SIGTERM or end.timestamp > prompt, end.exitcode >= 0

    return min(failures.items(), key=order)


def rank_name(rank: int) -> str:
    return f"rank {rank} ({socket.gethostname()})"


class ElasticAgent(LocalElasticAgent):
    """Ranks that ended by a mistake, a failure of the training or a signal to stop are not started anew: they would end so again."""

    _closed: float | None = None

    def run(self, role: str = DEFAULT_ROLE) -> RunResult:
        try:
            result = super().run(role)
        except RendezvousConnectionError:
            if self._worker_group.state != WorkerState.HEALTHY:
                raise
            result = super()._monitor_workers(
                self._worker_group
            )  # super's end of all ranks: they may know more than that the store is gone
            if {end.exitcode for end in result.failures.values()} == {-signal.SIGTERM}:
                raise
        return result or RunResult(WorkerState.SUCCEEDED)  # None: a node beyond the most that are needed

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.state == WorkerState.HEALTHY:
            self._leave_with_others()
        elif result.state == WorkerState.FAILED:
            codes = {end.exitcode for end in result.failures.values()}
            if codes <= {RETRY, 128 + signal.SIGTERM} and self._rdzv_handler.num_nodes_waiting():
                return RunResult(
                    WorkerState.HEALTHY
                )  # another node starts anew, or a new one joins: so do we, and it is no restart of ours
            if any(code > 0 and code != RETRY for code in codes):
                self._remaining_restarts = 0
            elif self._remaining_restarts:
                self._say_restart(result)
        return result

    def _leave_with_others(self) -> None:
        """A node that fails for good closes the run; ours could wait for its ranks until a time runs out."""
        if self._closed is None and self._rdzv_handler.is_closed():
            self._closed = time.monotonic()
        if self._closed is not None and time.monotonic() - self._closed > _LEAVE_SECONDS:
            raise RendezvousClosedError

    def _say_restart(self, result: RunResult) -> None:
        rank, end = root_failure(result.failures)
        what = (
            f"was killed by signal {-end.exitcode}" if end.exitcode < 0 else "failed or lost contact, as it says itself"
        )
        most = self._worker_group.spec.max_restarts
        print(
            f"{rank_name(rank)} {what}; restart {most - self._remaining_restarts + 1} of {most}, from the last checkpoint",
            flush=True,
        )
