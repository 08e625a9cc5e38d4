"""The first launch of an impl's kernels on a card happens in a process of its own: one that fails ends only that.

A kernel that reads outside of its memory makes the device useless to its process, and one that waits for ever stops it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache

import torch

from rdn_fast.devices import hardware, make_current
from rdn_fast.rdb.rounds import Verdict
from rdn_fast.rdb.tuning import remember, remembered
from rdn_fast.terminal import print_line

PATIENCE = 180.0  # seconds: kernels are compiled in most of them
PASSED, NO_DEVICE = "passed", 3  # what is remembered; exit code of a process that gets no device


@cache
def flaw_on(device: torch.device, what: str, module: str, version: str) -> str | None:
    """Return why `what`, such as "--rdb hopper", cannot be used on this card, or None. A note tells it, too.

    `python -m MODULE DEVICE` is the trial: where its exit code is not 0, its last line on stdout says what is wrong.
    That a `version` of the kernels has passed is remembered (rdb/tuning.py); the next process tries again what failed.
    Where the process gets no device, as on a card that serves one process at a time, nothing is known: None.
    """
    key = f"trial of {what} {version}, {hardware(device)}, torch {torch.__version__}"
    if remembered().get(key) == PASSED:
        return None
    code, words = _run([sys.executable, "-m", module, str(device)])
    if code == 0:
        remember({key: Verdict(PASSED, True)})
    if code in (0, NO_DEVICE):
        return None
    flaw = f"fails in a trial on this card: {words}"
    print_line(f"note: {what} {flaw}")
    return flaw


def _run(command: list[str]) -> tuple[int, str]:
    """Return the exit code of a command, and its last line or how it ended."""
    try:
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, encoding="utf-8", errors="replace", timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, f"it did not end within {PATIENCE:.0f} s"
    if ended.returncode < 0:
        return ended.returncode, f"it was ended by signal {-ended.returncode}"
    lines = ended.stdout.strip().splitlines()
    return ended.returncode, lines[-1] if lines else f"it ended with {ended.returncode}"


def on_its_device(flaw: Callable[[torch.device], str | None]) -> int:
    """Look for a flaw on the command's device, in the trial's process. Print it; return the exit code."""
    device = torch.device(sys.argv[1])
    try:
        make_current(device)
        torch.zeros(1, device=device)
    except RuntimeError:
        return NO_DEVICE
    words = flaw(device)
    if words:
        print_line(words)
    return 1 if words else 0
