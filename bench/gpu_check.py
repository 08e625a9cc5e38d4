"""`make gpu-check`: all that a machine with a CUDA GPU can tell, in one command, in under nine minutes.

The most wanted figures come first, tests and single kernels after them. Every part is a process of its own, so that a
crash ends only that part. Each has a limit, and one that no longer fits into the budget is named `not measured`. Rows
and all that was printed (gpu-check.log) go to $OUT if that is set. Needs no package that is not in install_requires but
pytest and triton, no network and no installation. Exit code 1 if a part failed or was left out, 2 without a GPU.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple, TextIO

import torch

from rdn_fast import devices

BUDGET = 525.0  # seconds in all
GRACE = 8.0  # seconds for the last words of what is stopped: pytest's say what failed


class Part(NamedTuple):
    """A command for this python.

    It does not start with fewer than `least` seconds. It is stopped after `most`, or if those after it need the rest.
    """

    name: str
    command: tuple[str, ...]
    least: float
    most: float


# Of the options that pyproject.toml adds, one needs pytest-benchmark. The implementation `compiled` is left to the
# measurements' own check: it would be compiled for every shape and memory format.
_PYTEST = ("-m", "pytest", "-o", "addopts=", "-o", "faulthandler_timeout=100", "-p", "no:cacheprovider", "-q", "-ra")
_PYTEST += ("-m", "not slow", "-k", "not compiled")
IMPLS = "tests/rdb/test_rdb.py", "tests/rdb/test_triton.py"
MODEL = "tests/test_model.py", "tests/test_precision.py", "tests/training/test_train.py"
PARTS = (
    Part("bench 1p", ("-m", "bench.run", "1p"), 180, 350),
    Part("tests of the implementations", (*_PYTEST, *IMPLS), 60, 130),
    Part("implementations", ("-m", "bench.run", "rdb"), 40, 150),
    Part("kernels", ("-m", "profiling.kernels", "triton"), 25, 80),
    Part("convolutions", ("-m", "profiling.kernels", "convolutions"), 20, 50),
    Part("tests of the model", (*_PYTEST, *MODEL), 30, 70),
    Part("long run", ("-m", "bench.run", "long_run"), 30, 60),
)


def check(parts: tuple[Part, ...], budget: float, log: TextIO) -> int:
    """Run the parts in turn, with all output also in `log`. Return the exit code: 1 unless every part ended with 0."""

    def say(words: str) -> None:
        print(words, flush=True)
        log.write(words + "\n")
        log.flush()

    end, failed = time.monotonic() + budget, []
    for number, part in enumerate(parts):
        left = end - time.monotonic()
        if left < part.least:
            failed.append(part.name)
            say(f"\n==== {part.name}: not measured, {left:.0f} of {budget:.0f} s are left")
            continue
        say(f"\n==== {part.name}: python {' '.join(part.command)}")
        began = time.monotonic()
        needed = sum(later.least for later in parts[number + 1 :])
        verdict = _run(part.command, min(part.most, max(part.least, left - needed)), say)
        if verdict != "done":
            failed.append(part.name)
        say(f"==== {part.name}: {verdict}, {time.monotonic() - began:.0f} s")
    done = f"{len(parts) - len(failed)} of {len(parts)} parts done"
    say(f"\ngpu-check: {done}" + (f"; not: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _run(command: tuple[str, ...], seconds: float, say: Callable[[str], None]) -> str:
    """Return how the command ended: "done", or in other words.

    It and its children are interrupted after `seconds`, and killed after GRACE more.
    """
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "errors": "replace"}
    process = subprocess.Popen([sys.executable, *command], start_new_session=True, **piped)
    ends = [(seconds, signal.SIGINT), (seconds + GRACE, signal.SIGKILL)]
    timers = [threading.Timer(delay, os.killpg, (process.pid, number)) for delay, number in ends]
    for timer in timers:
        timer.start()
    for line in process.stdout:
        say(line.rstrip("\n"))
    stopped = not timers[0].is_alive()
    for timer in timers:
        timer.cancel()
    code = process.wait()
    if stopped:
        return f"STOPPED after {seconds:.0f} s"
    return f"FAILED with {code}" if code else "done"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not there"


def main() -> int:
    if not devices.count("cuda"):
        seen = f"no CUDA GPU that torch {torch.__version__} can use is visible here"
        print(f"gpu-check: error: {seen}; run it where there is one", file=sys.stderr)
        return 2
    out = os.environ.get("OUT")
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
    packages = ", ".join(f"{name} {_version(name)}" for name in ("triton", "numpy", "h5py", "pytest", "rdn_fast"))
    gpu = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    python = f"{torch.cuda.get_device_name()}, python {sys.version.split()[0]}"
    words = f"{python}, torch {torch.__version__} ({gpu}), {packages}"
    with open(Path(out) / "gpu-check.log" if out else os.devnull, "w", encoding="utf-8") as log:
        print(words, flush=True)
        log.write(words + "\n")
        return check(PARTS, BUDGET, log)


if __name__ == "__main__":
    sys.exit(main())
