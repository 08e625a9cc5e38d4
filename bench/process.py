"""Processes of their own, so that measurements do not disturb each other; and how much memory this one takes.

`python -m bench.process MODULE FUNCTION ARGUMENTS` calls a function with arguments in JSON and prints its result so.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def run_module(what: str, module: list, **environment: str) -> str:
    """Run `python -m module...` and return its stdout. RuntimeError, in one line, with its last words if it fails."""
    command = [sys.executable, "-m", *map(str, module)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise RuntimeError(f"{what} ended with {done.returncode}: {last}")
    return done.stdout


def call(function: Callable, *arguments, ranks: int = 1, **environment: str):
    """Return function(*arguments) of a new process, or of rank 0 under torchrun. All values are JSON.

    The function may print; other ranks return None. RuntimeError if it fails.
    """
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", ranks, "-m"] if ranks > 1 else []
    words = function.__module__, function.__name__, json.dumps(arguments, default=str)
    out = run_module(function.__module__, [*torchrun, "bench.process", *words], **environment)
    return json.loads(out.strip().splitlines()[-1])


def memory(name: str) -> int:
    """Return bytes that /proc says of this process: VmRSS now, VmHWM at the peak of its resident set."""
    return 1024 * int(re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


if __name__ == "__main__":
    _module, _function, _arguments = sys.argv[1:]
    _result = getattr(importlib.import_module(_module), _function)(*json.loads(_arguments))
    if _result is not None:
        print(json.dumps(_result))
