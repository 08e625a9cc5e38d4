"""`rdn-fast train --nproc N`: check everything that can be checked, start N ranks through torchrun's agent, give back what they meant.

The agent alone would turn every exit code of a rank into 1 and print a traceback around it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rdn_fast import device as devices
from rdn_fast.config import Config, TrainConfig
from rdn_fast.errors import TrainingError, UserError
from rdn_fast.train import open_inputs


def launch(model_config: Config, config: TrainConfig, nproc: int, arguments: list[str]) -> int:
    """Train on `nproc` ranks of this machine with the command line `arguments` (without --nproc); returns the exit code."""
    kind = devices.resolve(config.device)
    there = devices.count(kind)
    if nproc > there:
        have = f"{there} CPU core{'s' * (there > 1)} and no accelerator" if kind == "cpu" else f"{there} {kind} device{'s' * (there > 1)}"
        raise UserError(f"--nproc {nproc}: this machine has {have}; ask for that many with --nproc {there}")
    devices.check_shared(config.device, config.device_id)
    open_inputs(model_config, config, world=nproc)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, devices.count("cpu") // nproc)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300")  # seconds that a rank has to finish its step and save
    logging.disable(logging.ERROR)  # the agent's own remarks; the ranks speak for themselves
    with tempfile.TemporaryDirectory() as logs:
        settings = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=nproc, run_id=f"rdn-fast-{os.getpid()}", rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.1, logs_specs=DefaultLogsSpecs(log_dir=logs),
        )  # fmt: skip
        try:
            elastic_launch(settings, sys.executable)("-m", "rdn_fast", "train", *arguments)
        except SignalException as stopped:
            return 128 + stopped.sigval
        except ChildFailedError as failed:
            # In the order of their ends; those that the agent then terminated speak last.
            ends = failed.failures.values()
            first = min(ends, key=lambda end: (end.exitcode != 2, end.exitcode == -signal.SIGTERM, end.exitcode >= 0))
            if first.exitcode < 0:
                raise TrainingError(f"rank {first.local_rank} was killed by signal {-first.exitcode}; go on with --resume auto") from None
            return first.exitcode
    return 0
