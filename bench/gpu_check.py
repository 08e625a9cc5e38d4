"""`make gpu-check`: all that a machine with a CUDA GPU can tell, in one command, in under nine minutes.

The most wanted figures come first: end to end, rdn_fast before the reference under AMP and the strongest stock recipe.
Tests and single kernels come after them. Every part is a process of its own, so that a crash ends only that part. Each
has a limit, and one that no longer fits into the budget is named `not measured`. Rows are on disk as soon as they are
measured; they and all that was printed (gpu-check.log) go to $OUT if that is set. Needs no package that is not in
install_requires but pytest and triton, no network and no installation. Exit code 1 if a part failed or was left out, 2
without a GPU.

    python -m bench.gpu_check --dry-run --budget 300

starts nothing, needs no GPU, and prints what would run when, and what would be cut, if every part took its usual time.
"""

from __future__ import annotations

import argparse
import io
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

    It does not start with fewer than `least` seconds, and is stopped after `most`: what comes later is less wanted.
    usual: the seconds that it is expected to take on an H100. No part has been timed there yet.
    """

    name: str
    command: tuple[str, ...]
    least: float
    usual: float
    most: float


Say = Callable[[str], None]

# Of the options that pyproject.toml adds, one needs pytest-benchmark. The implementation `compiled` is left to the
# measurements' own check: it would be compiled for every shape and memory format.
_PYTEST = ("-m", "pytest", "-o", "addopts=", "-o", "faulthandler_timeout=100", "-p", "no:cacheprovider", "-q", "-ra")
_PYTEST += ("-m", "not slow", "-k", "not compiled")
IMPLS = "tests/rdb/test_rdb.py", "tests/rdb/test_triton.py", "tests/tail/test_output_conv.py"
MODEL = "tests/test_model.py", "tests/test_precision.py", "tests/training/test_train.py"
PARTS = (
    Part("end to end", ("-m", "bench.run", "end_to_end"), 90, 180, 240),
    Part("tests of the implementations", (*_PYTEST, *IMPLS), 50, 70, 110),
    Part("training step", ("-m", "bench.run", "training_step"), 60, 110, 150),
    Part("implementations", ("-m", "bench.run", "rdb"), 40, 60, 100),
    Part("kernels", ("-m", "profiling.kernels", "impls"), 25, 50, 100),
    Part("last convolution", ("-m", "profiling.kernels", "tail"), 10, 15, 30),
    Part("memory", ("-m", "bench.run", "memory"), 20, 30, 50),
    Part("inference", ("-m", "bench.run", "inference"), 25, 40, 60),
    Part("convolutions", ("-m", "profiling.kernels", "convolutions"), 15, 25, 40),
    Part("tests of the model", (*_PYTEST, *MODEL), 25, 40, 70),
    Part("long run", ("-m", "bench.run", "long_run"), 20, 35, 60),
    Part("loading", ("-m", "bench.run", "loading"), 30, 50, 90),
)


def check(
    parts: tuple[Part, ...],
    budget: float,
    log: TextIO,
    clock: Callable[[], float] = time.monotonic,
    run: Callable[[Part, float, Say], str] | None = None,
) -> int:
    """Run the parts in turn, with all output also in `log`. Return the exit code: 1 unless every part ended with 0.

    run(part, seconds, say) runs one for that long at most, and returns how it ended; None: in a process of its own.
    """

    def say(words: str) -> None:
        print(words, flush=True)
        log.write(words + "\n")
        log.flush()

    run, began, failed = run or _run, clock(), []
    for part in parts:
        at = clock() - began
        left = budget - at
        if left < part.least:
            failed.append(part.name)
            say(f"==== {at:4.0f} s  {part.name}: not measured, {left:.0f} of {budget:.0f} s are left")
            continue
        say(f"==== {at:4.0f} s  {part.name}: python {' '.join(part.command)}")
        verdict = run(part, min(part.most, left), say)
        if verdict != "done":
            failed.append(part.name)
        now = clock() - began
        say(f"==== {now:4.0f} s  {part.name}: {verdict}, {now - at:.0f} s\n")
    done = f"{len(parts) - len(failed)} of {len(parts)} parts done"
    say(f"gpu-check: {done}" + (f"; not: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _run(part: Part, seconds: float, say: Say) -> str:
    """Return how the part's command ended: "done", or in other words.

    It and its children are interrupted after `seconds`, and killed after GRACE more.
    """
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "errors": "replace"}
    process = subprocess.Popen([sys.executable, *part.command], start_new_session=True, **piped)
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


class DryRun:
    """A stand-in for clock and machine: a part takes its usual seconds, which pass at once."""

    def __init__(self):
        self._now = 0.0

    def clock(self) -> float:
        return self._now

    def run(self, part: Part, seconds: float, say: Say) -> str:
        self._now += min(part.usual, seconds)
        return "done" if part.usual <= seconds else f"STOPPED after {seconds:.0f} s"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not there"


def main(argv: list[str] | None = None) -> int:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__, formatter_class=kind)
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds in all (default: %(default).0f)")
    parser.add_argument("--dry-run", action="store_true", help="start nothing; tell what would run when")
    options = parser.parse_args(argv)
    if options.dry_run:
        dry = DryRun()
        check(PARTS, options.budget, io.StringIO(), dry.clock, dry.run)
        return 0
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
        return check(PARTS, options.budget, log)


if __name__ == "__main__":
    sys.exit(main())
