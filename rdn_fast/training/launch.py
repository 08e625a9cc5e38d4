"""`rdn-fast train --nproc N`: check the flags and files, start N ranks under torchrun's agent, return their exit code.

The agent alone would turn every exit code of a rank into 1 and print a traceback.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import uuid

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
)
from torch.distributed.launcher import api
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rdn_fast import devices
from rdn_fast.config import ModelConfig, TrainConfig
from rdn_fast.distributed import rendezvous
from rdn_fast.distributed.elastic_agent import ElasticAgent, rank_name, root_failure
from rdn_fast.distributed.process_group import LAUNCH_VARIABLE
from rdn_fast.distributed.rendezvous import Nodes
from rdn_fast.errors import RETRY, Failure, UserError
from rdn_fast.training.inputs import open_inputs


def launch(
    model_config: ModelConfig,
    train_config: TrainConfig,
    nproc: int,
    nodes: Nodes,
    max_restarts: int,
    arguments: list[str],
) -> int:
    """Train on `nproc` ranks of this node, and as many of each other one; return the exit code.

    arguments: the command line of `rdn-fast train` for each rank. Raises UserError before any rank starts where it can,
    and Failure when a rank was killed or a node is gone.
    """
    kind = devices.resolve(train_config.device)
    _check(model_config, train_config, kind, nproc, nodes)
    _set_environment(nproc)
    logging.disable(logging.ERROR)  # the agent's own messages; ours and those of the ranks remain
    api.LocalElasticAgent = ElasticAgent  # elastic_launch has no parameter for it
    with tempfile.TemporaryDirectory() as logs:
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            run_id=f"rdn-fast-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=max_restarts,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        if nodes.max_nodes > 1:
            store = nodes.open_store()  # lives until the ranks have ended
            settings.min_nodes, settings.max_nodes = nodes.min_nodes, nodes.max_nodes
            settings.run_id = nodes.rdzv_id or "rdn-fast"
            settings.rdzv_endpoint = nodes.rdzv_endpoint
            settings.rdzv_configs |= {"join_timeout": rendezvous.JOIN_TIMEOUT, "is_host": store is not None}
        resolved = ("--device", kind) if train_config.device == "auto" else ()  # the same choice for all ranks
        return _run_ranks(settings, nodes, ["-m", "rdn_fast", "train", *arguments, *resolved])


def _check(model_config: ModelConfig, train_config: TrainConfig, kind: str, nproc: int, nodes: Nodes) -> None:
    available = devices.count(kind)
    if nproc > available:
        has = devices.inventory(kind)
        raise UserError(f"--nproc {nproc}: this machine has {has}; ask for that many with --nproc {available}")
    if nproc > 1:
        devices.check_shared(train_config.device, train_config.device_id)
    open_inputs(model_config, train_config, world=nproc * nodes.max_nodes)


def _set_environment(nproc: int) -> None:
    """Set what the ranks inherit."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, devices.cores() // nproc)))
    # Seconds that a rank has to finish its step and save after a signal.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300")
    # Restarted ranks must not find the addresses that the ranks before them left in the agent's store.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ[LAUNCH_VARIABLE] = uuid.uuid4().hex


def _run_ranks(settings: LaunchConfig, nodes: Nodes, arguments: list[str]) -> int:
    """Start the ranks, wait for them and return the exit code that they mean. Raises Failure where none says why."""
    try:
        elastic_launch(settings, sys.executable)(*arguments)
    except SignalException as stopped:
        return 128 + stopped.sigval
    except ChildFailedError as failed:
        rank, failure = root_failure(failed.failures)
        if failure.exitcode < 0:
            killed = f"{rank_name(rank)} was killed by signal {-failure.exitcode}"
            raise Failure(f"{killed}; go on with --resume auto") from None
        return 1 if failure.exitcode == RETRY else failure.exitcode
    except RendezvousTimeoutError:
        raise Failure(
            f"--rdzv-endpoint {nodes.rdzv_endpoint}: fewer than {nodes.min_nodes} nodes have come there within "
            f"{rendezvous.JOIN_TIMEOUT} s; start the same command on every node"
        ) from None
    except RendezvousClosedError:
        raise Failure("another node has left the run for good, and says why itself; go on with --resume auto") from None
    except RendezvousConnectionError:
        raise Failure(
            f"--rdzv-endpoint {nodes.rdzv_endpoint}: the node where all meet has gone, and its own message says why; "
            "go on with --resume auto"
        ) from None
    return 0
