"""A process that makes trials of one kind and prints a JSON line for each: `python -m tests.campaign.worker`.

A crash ends only this process; the campaign knows by the lines that are missing whose it was.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from tests.campaign.kinds import KINDS

_GROWTH = 512 << 20  # bytes of memory that a trial may take
_ADDRESSES = 8 << 30  # bytes of addresses beyond those of the start: what takes more must not hurt the machine


def _peak() -> int:
    """Return the largest resident size since _reset_peak(), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _bound_addresses() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _ADDRESSES,) * 2)


def main() -> None:
    name, folder, form, *seeds = sys.argv[1:]
    kind, folder = KINDS[name], Path(folder)
    results = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the program prints is no result
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    faulthandler.enable()
    made, run = kind.prepare(folder / "made"), (form == "short" and kind.short) or kind.run
    if kind.bounded:
        _bound_addresses()
    for seed in map(int, seeds):
        trial = folder / str(seed)
        shutil.rmtree(trial, ignore_errors=True)
        trial.mkdir(parents=True)
        _reset_peak()
        before, began = _peak(), time.monotonic()
        signal.setitimer(signal.ITIMER_PROF, kind.cpu_seconds)  # SIGPROF ends a hang, even one in C
        try:
            outcome, words = run(made, seed, trial), ""
        except BaseException as error:
            outcome, words = "failed", "".join(traceback.format_exception(error))[-3000:]
        signal.setitimer(signal.ITIMER_PROF, 0)
        if kind.bounded and (grown := _peak() - before) > _GROWTH:
            outcome, words = "failed", f"took {grown >> 20} MiB of memory"
        if outcome != "failed":
            shutil.rmtree(trial, ignore_errors=True)
        seconds = round(time.monotonic() - began, 3)
        results.write(json.dumps({"seed": seed, "outcome": outcome, "words": words, "seconds": seconds}) + "\n")
        results.flush()
    results.close()
    os._exit(0)  # leaves no shutdown to anything that a damaged file has left open


if __name__ == "__main__":
    main()
