"""`make gpu-check`: all that a machine with a CUDA GPU can tell, in one command: the tests on it, then measurements, in under nine minutes.

Every part is a process of its own, so that a crash ends only that part; each gets a limit, and one that no longer fits into the budget
is named `not measured`. Rows and all that was printed (gpu-check.log) go to $OUT where that is set. Needs no package that is not in
install_requires but pytest and triton, no network and no installation. Exit code 1 when a part failed or was left out, 2 without a GPU.
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
    """A command for this python. It does not start with fewer than `least` seconds, and is stopped after `most`, or when those after it need the rest."""

    name: str
    command: tuple[str, ...]
    least: float
    most: float


# Of the options that pyproject.toml adds, one needs pytest-benchmark. The row `compiled` is left to the measurements' own check: it would
# be compiled for every shape and layout.
_PYTEST = (
    "-m",
    "pytest",
    "-o",
    "addopts=",
    "-o",
    "faulthandler_timeout=100",
    "-p",
    "no:cacheprovider",
    "-q",
    "-ra",
    "-m",
    "not slow",
    "-k",
    "not compiled",
)

# The most telling first. What is stopped has its rows on disk.
PARTS = (
    Part("tests of the rows", (*_PYTEST, "tests/rdb/test_rdb.py", "tests/rdb/test_triton.py"), 60, 130),
    Part(
        "tests of the model and of training",
        (*_PYTEST, "tests/test_model.py", "tests/test_precision.py", "tests/training/test_train.py"),
        30,
        70,
    ),
    Part("convolutions", ("-m", "bench.gpu_parts", "convolutions"), 20, 50),
    Part("rows", ("-m", "bench.gpu_parts", "rows"), 40, 150),
    Part("kernels", ("-m", "bench.gpu_parts", "kernels"), 25, 80),
    Part("bench 1p", ("-m", "bench.run", "1p"), 180, 350),
    Part("training", ("-m", "bench.gpu_parts", "training"), 30, 60),
)


def check(parts: tuple[Part, ...], budget: float, log: TextIO) -> int:
    """Run the parts in turn, all output also into `log`. The exit code: 1 unless every part ended with 0."""

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
        verdict = _run(
            part.command, min(part.most, max(part.least, left - sum(later.least for later in parts[number + 1 :]))), say
        )
        if verdict != "done":
            failed.append(part.name)
        say(f"==== {part.name}: {verdict}, {time.monotonic() - began:.0f} s")
    say(
        f"\ngpu-check: {len(parts) - len(failed)} of {len(parts)} parts done"
        + (f"; not: {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0


def _run(command: tuple[str, ...], seconds: float, say: Callable[[str], None]) -> str:
    """How the command ended: "done", or in other words; it and its children are interrupted after `seconds`, and killed after GRACE more."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
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
        print(
            f"gpu-check: error: no CUDA GPU that torch {torch.__version__} can use is visible here; run it where there is one",
            file=sys.stderr,
        )
        return 2
    out = os.environ.get("OUT")
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
    with open(Path(out) / "gpu-check.log" if out else os.devnull, "w", encoding="utf-8") as log:
        packages = ("triton", "numpy", "h5py", "pytest", "rdn_fast")
        words = f"{torch.cuda.get_device_name()}, python {sys.version.split()[0]}, torch {torch.__version__} (CUDA {torch.version.cuda}, "
        words += (
            f"cuDNN {torch.backends.cudnn.version()}), {', '.join(f'{name} {_version(name)}' for name in packages)}"
        )
        print(words, flush=True)
        log.write(words + "\n")
        return check(PARTS, BUDGET, log)


if __name__ == "__main__":
    sys.exit(main())
