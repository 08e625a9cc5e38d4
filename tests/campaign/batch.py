"""Run a batch of trials in a worker process, and know whose fault it was when the worker dies."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tests.campaign.trial import Kind
from tests.runs import ROOT

_START = 300  # seconds that a worker may take before its first trial beyond the trial's own, on a busy machine


def run_batch(kind: Kind, folder: Path, seeds: Sequence[int], short: bool = False) -> Iterator[dict]:
    """Yield a record {"seed", "outcome", "words", "seconds"} for each seed, in order.

    short: make trials of the kind's cheaper form, if it has one. A worker that crashes or hangs costs its trial, which
    is recorded as failed; another one makes those after it.
    """
    rest = [*seeds]
    while rest:
        for record in _from_one_worker(kind, folder, rest, short):
            rest.remove(record["seed"])
            yield record


def _from_one_worker(kind: Kind, folder: Path, seeds: Sequence[int], short: bool) -> Iterator[dict]:
    """Yield the records of one worker, the last one perhaps of its death."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "tests.campaign.worker", kind.name, folder, "short" if short else "whole", *seeds]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    log = folder / "worker.log"
    with log.open("wb") as said:
        worker = subprocess.Popen(
            [*map(str, words)], stdout=subprocess.PIPE, stderr=said, env=environment, cwd=ROOT, start_new_session=True
        )
    left, seconds = [*seeds], _START + kind.seconds
    try:
        while left and (line := _line(worker, seconds)):
            record, seconds = json.loads(line), kind.seconds
            left.remove(record["seed"])
            yield record
        if left:
            hung = worker.poll() is None and line is None
            _end(worker)
            how = f"no end within {seconds} s" if hung else _how_it_ended(worker.returncode)
            tail = log.read_text(errors="replace")[-2000:]
            yield {"seed": left[0], "outcome": "failed", "words": f"{tail}\n{how}", "seconds": 0.0}
    finally:
        _end(worker)


def _line(worker: subprocess.Popen, seconds: float) -> bytes | None:
    """Return the worker's next line, b"" at its end, None when there is none in time."""
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        return worker.stdout.readline() if selector.select(seconds) else None


def _end(worker: subprocess.Popen) -> None:
    """Wait for a worker that has closed its output; kill one that has not, and all that it has started."""
    with suppress(subprocess.TimeoutExpired):
        worker.wait(5)
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    worker.stdout.close()


def _how_it_ended(code: int) -> str:
    if code == -signal.SIGPROF:
        return "hangs: its time on the processor was over"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
