"""`python -m profiling.flame`: a flame graph of a real `rdn-fast train` run of a few seconds, sampled by py-spy.

It shows Python's frames, also those of the loader's threads: what the loop costs beside the kernels that it calls.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from bench.loop import write_h5
from bench.models import PATCH, RDN_B, default_dtype, resolve_impl
from profiling.step import options
from profiling.trace import FOLDER
from rdn_fast.errors import UserError

STEPS = 6


class CannotSample(Exception):
    """Why there is no flame graph, in one line."""


def flame(preset: str, batch: int, device: torch.device, picture: Path) -> None:
    """Write the SVG of a run of STEPS steps of `preset`. CannotSample if py-spy is missing or fails."""
    beside = str(Path(sys.executable).parent)
    spy = shutil.which("py-spy", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if spy is None:
        raise CannotSample("needs py-spy: pip install py-spy, or use `make profile`")
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data.h5", Path(folder) / "out"
        write_h5(data, batch * STEPS, RDN_B.scale)
        given = {"preset": preset, "train-file": data, "outputs-dir": out, "device": device, "batch-size": batch}
        given |= {"patch-size": PATCH, "max-steps": STEPS}
        train = [sys.executable, "-m", "rdn_fast", "train", *(f"--{name}={value}" for name, value in given.items())]
        command = [spy, "record", "--output", picture, "--", *train]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not (out / "last.pth").is_file() or not picture.is_file():
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            raise CannotSample(f"py-spy ended with {done.returncode}: {last}")


def main(argv: list[str] | None = None) -> int:
    picture = FOLDER / "flame.svg"
    try:
        device, batch = options(__doc__, argv)
        # The choice is remembered, so that autotuning is not in the picture.
        lr = batch, 3, PATCH, PATCH
        resolve_impl("auto", RDN_B, lr, device, default_dtype(device, RDN_B, lr), training=True)
        flame("rdn-b", batch, device, picture)
    except (UserError, CannotSample) as error:
        print(f"flame: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    print(f"written: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
