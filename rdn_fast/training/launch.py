"""`rdn-fast train --nproc N`: check everything that can be checked, start N ranks through torchrun's agent, give back what they meant.

The agent alone would turn every exit code of a rank into 1 and print a traceback around it.
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
from rdn_fast.distributed import rendezvous as meeting
from rdn_fast.distributed.elastic_agent import ElasticAgent, rank_name, root_failure
from rdn_fast.distributed.process_group import LAUNCH_VARIABLE
from rdn_fast.distributed.rendezvous import Nodes
from rdn_fast.errors import RETRY, Failure, UserError
from rdn_fast.training.inputs import open_inputs


def launch(
    model_config: ModelConfig, config: TrainConfig, nproc: int, nodes: Nodes, max_restarts: int, arguments: list[str]
) -> int:
    """Train on `nproc` ranks of this node, and as many of the others, with the command line `arguments`; returns the exit code."""
    kind = devices.resolve(config.device)
    there = devices.count(kind)
    if nproc > there:
        raise UserError(
            f"--nproc {nproc}: this machine has {devices.inventory(kind)}; ask for that many with --nproc {there}"
        )
    if nproc > 1:
        devices.check_shared(config.device, config.device_id)
    open_inputs(model_config, config, world=nproc * nodes.max_nodes)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, devices.cores() // nproc)))
    os.environ.setdefault(
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300"
    )  # seconds that a rank has to finish its step and save
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = (
        "1"  # ranks that start anew must not find the addresses of those before them
    )
    os.environ[LAUNCH_VARIABLE] = uuid.uuid4().hex
    logging.disable(logging.ERROR)  # the agent's own remarks; the ranks speak for themselves
    api.LocalElasticAgent = ElasticAgent  # elastic_launch takes no other
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
            store = nodes.open_store()  # open as long as we are
            settings.min_nodes, settings.max_nodes = nodes.min_nodes, nodes.max_nodes
            settings.run_id = nodes.rdzv_id or "rdn-fast"
            settings.rdzv_endpoint = nodes.rdzv_endpoint
            settings.rdzv_configs |= {"join_timeout": meeting.JOIN_TIMEOUT, "is_host": store is not None}
        try:
            told = ("--device", kind) if config.device == "auto" else ()  # once
            elastic_launch(settings, sys.executable)("-m", "rdn_fast", "train", *arguments, *told)
        except SignalException as stopped:
            return 128 + stopped.sigval
        except ChildFailedError as failed:
            rank, end = root_failure(failed.failures)
            if end.exitcode < 0:
                raise Failure(
                    f"{rank_name(rank)} was killed by signal {-end.exitcode}; go on with --resume auto"
                ) from None
            return 1 if end.exitcode == RETRY else end.exitcode
        except RendezvousTimeoutError:
            raise Failure(
                f"--rdzv-endpoint {nodes.rdzv_endpoint}: fewer than {nodes.min_nodes} nodes have come there within {meeting.JOIN_TIMEOUT} s; "
                "start the same command on every node"
            ) from None
        except RendezvousClosedError:
            raise Failure(
                "another node has left the run for good, and says why itself; go on with --resume auto"
            ) from None
        except RendezvousConnectionError:
            raise Failure(
                f"--rdzv-endpoint {nodes.rdzv_endpoint}: the node where all meet has gone, and its own message says why; go on with --resume auto"
            ) from None
    return 0
