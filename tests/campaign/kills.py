"""kill -9 at any moment of a run's life, on one rank and on two: the bytes of a run that nobody disturbed.

A life is a run of five kills. Each kill has a moment drawn over all that is left of the run, or strikes when the run
opens, renames, removes or syncs a file of its folder, up to a few milliseconds later.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.campaign.records import conditions
from tests.campaign.trial import SAME, Kind, require
from tests.runs import ROOT, TINY, assert_same_run, command, kill, make_data, ranks_of

KILLS = 5  # of a life
PATIENCE = 300  # seconds for a run to end
_FLAGS = (*TINY, "--batch-size", 4, "--eval-every", 9, "--ema", "0.9", "--clip-grad", 1, "--opt-level", "O0")
_MORE = ("--rdb", "naive", "--num-workers", 1, "--epochs", 100_000, "--max-steps", 300, "--checkpoint-every", "0.1")

# Run by every process of a run before anything else.
_STRIKE = """
import os, signal, sys, threading, time
folder, place, delay = os.environ["STRIKE_FOLDER"], int(os.environ["STRIKE_PLACE"]), float(os.environ["STRIKE_DELAY"])
seen = 0

def strike():
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)

def count():
    global seen
    seen += 1
    if seen == place:
        threading.Thread(target=strike, daemon=True).start() if delay else strike()

def hook(event, arguments):
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate"):
        if str(arguments[0]).startswith(folder):
            count()

def fsync(file, real=os.fsync):
    count()
    real(file)
    count()

os.fsync = fsync
sys.addaudithook(hook)
"""


class Undisturbed(NamedTuple):
    data: Path
    outputs: Path
    seconds: float  # from the start of the process to its end
    ranks: int


def words(whole: Undisturbed, outputs: Path) -> list[str]:
    """Return the command that starts the run or goes on with it."""
    where = ("--data-path", whole.data, "--outputs-dir", outputs)
    return command("train", *where, *_FLAGS, *_MORE, "--nproc", whole.ranks, "--resume", "auto")


def prepare(ranks: int, folder: Path) -> Undisturbed:
    """Make the undisturbed run, once for a commit."""
    folder = folder / conditions()["commit"]
    data, outputs, told = folder / "data", folder / "outputs", folder / "seconds.json"
    if not told.exists():
        began = time.monotonic()
        _run_whole(Undisturbed(make_data(data), outputs, 0.0, ranks), outputs)
        told.write_text(json.dumps(time.monotonic() - began))
    return Undisturbed(data, outputs, json.loads(told.read_text()), ranks)


def _run_whole(whole: Undisturbed, outputs: Path) -> None:
    ended = subprocess.run(words(whole, outputs), capture_output=True, text=True, timeout=PATIENCE, check=False)
    require((ended.returncode, ended.stderr) == (0, ""), f"{ended}")


def require_same_end(whole: Undisturbed, outputs: Path) -> None:
    """Go on with a run to its end. Raise Broken unless it is that of the undisturbed one."""
    _run_whole(whole, outputs)
    assert_same_run(outputs, whole.outputs)
    require(not [*outputs.rglob("*.tmp")], "temporary files are left")


def _run(most: int, whole: Undisturbed, seed: int, folder: Path) -> str:
    rng = np.random.default_rng([7, seed, whole.ranks])
    outputs, kills = folder / "outputs", 0
    (folder / "sitecustomize.py").write_text(_STRIKE)
    for _ in range(10 * most):
        kills += _one_kill(whole, outputs, rng)
        if kills == most:
            break
    require(kills == most, f"only {kills} kills found the run alive")
    require_same_end(whole, outputs)
    return SAME


def _one_kill(whole: Undisturbed, outputs: Path, rng: np.random.Generator) -> bool:
    """Start or go on with the run, and kill it. Return False when it was over before that."""
    left = _left(outputs)
    seconds = rng.uniform(0, whole.seconds * (0.6 + 0.4 * left))
    place = int(2 ** rng.uniform(0, 7)) if rng.random() < 0.5 else 0
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(outputs.parent), str(ROOT)]),
        "STRIKE_FOLDER": str(outputs),
        "STRIKE_PLACE": str(place),
        "STRIKE_DELAY": str(rng.choice([0, rng.uniform(0, 0.005)])),
    }
    process = subprocess.Popen(
        words(whole, outputs), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        process.wait(PATIENCE if place else seconds)
        killed = False
    except subprocess.TimeoutExpired:
        killed = True
        _kill_someone(process, rng)
    _, err = process.communicate(timeout=PATIENCE)
    if process.returncode == 0:
        return False
    if process.returncode == -signal.SIGKILL:
        require("Traceback" not in err, err)
        return True
    # A launcher says who was killed; a second rank may say that it has lost contact.
    lines = err.splitlines()
    require(process.returncode == 1 and (killed or place), f"exit code {process.returncode}: {err}")
    require(0 < len(lines) <= 2 and all(re.match(r"rdn-fast.*: failed: .*--resume auto$", line) for line in lines), err)
    require("was killed by signal 9" in err, err)
    return True


def _kill_someone(process: subprocess.Popen, rng: np.random.Generator) -> None:
    """Kill a rank, or the launcher, or all of them."""
    ranks, whom = sorted(ranks_of(process)), rng.integers(4)
    if whom < len(ranks):
        os.kill(ranks[whom], signal.SIGKILL)
    elif whom == 2:
        process.kill()
    else:
        kill(process)


def _left(outputs: Path) -> float:
    """Return which share of the run's steps is left."""
    steps = [int(path.stem.removeprefix("step_")) for path in outputs.glob("checkpoints/step_*.pt")]
    return 1 - max(steps, default=0) / 300


KINDS = tuple(
    Kind(
        f"kill-{ranks}",
        f"A run on {ranks} rank{'s' * (ranks > 1)}, killed by `kill -9` five times at any moments and resumed, "
        "ends with the weights and the metrics of an undisturbed one",
        100,
        partial(_run, KILLS),
        partial(prepare, ranks),
        cpu_seconds=600,
        short=partial(_run, 1),
        weight=KILLS,
    )
    for ranks in (1, 2)
)
