"""Ctrl-C and SIGTERM while a result is written: one line, exit 130 or 143, no temporary file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from runs import ROOT
from waiting import PATIENCE, until

from rdn_fast.weights.shipped import select

# The result lies beside its final name until the signal comes.
SLOW = """
import sys, time
from rdn_fast import cli, files
sync = files._sync
files._sync = lambda path: (time.sleep(300), sync(path))
sys.exit(cli.main())
"""


@pytest.mark.parametrize(
    ("words", "number"),
    [("convert SHIPPED out.pth", signal.SIGTERM), ("eval --eval-file EVAL --device cpu --csv out.csv", signal.SIGINT)],
)
def test_no_temporary_file_is_left(prepared, tmp_path, words, number):
    words = words.replace("SHIPPED", str(select().file)).replace("EVAL", str(prepared.eval))
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *words.split()],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    until(lambda: list(tmp_path.glob(".*.tmp")) or process.poll() is not None)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (128 + number, f"rdn-fast: stopped by {number.name}\n")
    assert not list(tmp_path.glob(".*"))


def test_what_the_caller_does_on_sigterm_stays(cli):
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        cli("doctor", "--device", "cpu")
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    cli("convert", "none.pth", "out.pth")
    assert signal.getsignal(signal.SIGTERM) is before
