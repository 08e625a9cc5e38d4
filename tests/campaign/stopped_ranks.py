"""A rank that answers no more: the run ends and names it, and its resume gives the bytes of an undisturbed run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np

from tests.campaign import kills
from tests.campaign.kills import Undisturbed
from tests.campaign.trial import SAME, Kind, require
from tests.runs import ROOT, kill, ranks_of

# Shorter waits than those of the program, which are minutes.
_PATCH = """
from rdn_fast.distributed import elastic_agent, process_group
from torch.distributed.elastic.multiprocessing.api import PContext
process_group.TIMEOUT, process_group._GRACE = 10, 1
PContext.close.__defaults__ = (None, 3)  # seconds from SIGTERM to SIGKILL
elastic_agent._EXIT_SECONDS = 1
"""


def _run(whole: Undisturbed, seed: int, folder: Path) -> str:
    rng, outputs = np.random.default_rng([11, seed]), folder / "outputs"
    (folder / "sitecustomize.py").write_text(_PATCH)
    paths = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    process = subprocess.Popen(
        kills.words(whole, outputs), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        while not [*outputs.glob("checkpoints/step_*.pt")]:
            require(process.poll() is None, "the run ended before its first checkpoint")
            time.sleep(0.01)
        rank = int(rng.integers(2))
        pid = sorted(ranks_of(process))[rank]
        time.sleep(rng.uniform(0, 0.2))
        os.kill(pid, signal.SIGSTOP)
        _, err = process.communicate(timeout=kills.PATIENCE)
    finally:
        kill(process)
    named = rf"rdn-fast.*: failed: no answer for 10 s from rank {rank} \(\S+\); go on with --resume auto\n"
    require(process.returncode == 1 and re.fullmatch(named, err), f"{process.returncode}: {err}")
    kills.require_same_end(whole, outputs)
    return SAME


KINDS = (
    Kind(
        "stopped-rank",
        "A run whose rank is stopped (SIGSTOP) ends, names that rank, and resumes to the bytes of an undisturbed run",
        10,
        _run,
        partial(kills.prepare, 2),
        cpu_seconds=600,
    ),
)
