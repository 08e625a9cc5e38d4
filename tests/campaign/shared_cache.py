"""Eight processes start at once on an empty cache folder: all compile and time, all succeed, no file is torn."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from functools import partial
from pathlib import Path

from tests.campaign.trial import Kind, require
from tests.runs import ROOT, TINY, command, make_data

_PROCESSES = 8


def _run(number: int, data: Path, seed: int, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    flags = (*TINY, "--data-path", data, "--batch-size", 2, "--max-steps", 2, "--opt-level", "O0", "--outputs-dir")
    processes = [
        subprocess.Popen(
            command("train", *flags, folder / str(i)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for i in range(number)
    ]
    try:
        for process in processes:
            out, err = process.communicate(timeout=600)
            require((process.returncode, err) == (0, ""), f"{process.returncode}: {err}")
            require("note: " not in out, out)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    cache = folder / "cache" / "rdn_fast"
    require(json.loads((cache / "tuning.json").read_text()), "no choice was remembered")
    for library in cache.glob("*.so"):
        ctypes.CDLL(str(library))
    require(not [*cache.glob(".*.tmp")], "temporary files are left")
    return "all succeeded"


KINDS = (
    Kind(
        "cache",
        f"{_PROCESSES} runs that start at once on one empty cache folder all compile, time and train; no file is torn",
        5,
        partial(_run, _PROCESSES),
        lambda folder: make_data(folder / "data", images=5),
        short=partial(_run, 3),
        cpu_seconds=600,
    ),
)
