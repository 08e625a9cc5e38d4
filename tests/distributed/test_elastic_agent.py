"""Which ends of ranks the agent lets join another node's restart without using up one of its own."""

import signal
from types import SimpleNamespace

import pytest
from torch.distributed.elastic.agent.server.api import RunResult, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

from rdn_fast.distributed.elastic_agent import ElasticAgent
from rdn_fast.errors import RETRY

ENDS = {
    "lost contact": ((RETRY, RETRY), True),
    "saved at the agent's SIGTERM": ((RETRY, 128 + signal.SIGTERM), True),
    "ended by the agent's SIGTERM": ((RETRY, -signal.SIGTERM), True),
    "killed": ((RETRY, -signal.SIGKILL), False),
    "failed": ((RETRY, 1), False),
}


@pytest.mark.parametrize("waiting", [0, 1])
@pytest.mark.parametrize("end", ENDS)
def test_ranks_that_another_node_has_ended_join_its_restart(monkeypatch, end, waiting):
    codes, joins = ENDS[end]
    failures = {rank: SimpleNamespace(exitcode=code, timestamp=0) for rank, code in enumerate(codes)}
    failed = RunResult(WorkerState.FAILED, failures=failures)
    monkeypatch.setattr(LocalElasticAgent, "_monitor_workers", lambda *_: failed)
    agent = ElasticAgent.__new__(ElasticAgent)  # __init__ opens a folder of logs
    agent._rdzv_handler, agent._remaining_restarts = SimpleNamespace(num_nodes_waiting=lambda: waiting), 0
    result = agent._monitor_workers(None)
    assert (result.state == WorkerState.HEALTHY) == (joins and waiting > 0)
