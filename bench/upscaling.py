"""`rdn-fast upscale` with the model that is shipped, in a process of its own: a photograph of 12 megapixels, and a thousand small files.

`python -m bench.upscaling DEVICE IN OUT` prints, behind the command's own lines, a Use in JSON.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from bench.memory import status
from rdn_fast import devices
from rdn_fast.cli import main
from rdn_fast.pictures.tiled import Upscaler

PHOTOGRAPH = 4000, 3000  # width, height
FILES = 1000
EDGES = 48, 97  # of the small files: from, to (less one)


class Use(NamedTuple):
    """Wall seconds of the command, imports left out; those in which the model computed; peak memory in bytes, of the whole process and of the device."""

    seconds: float
    computing: float
    resident: int
    allocated: int


class Pictures(NamedTuple):
    """A folder of pictures; `sizes` in words, `pixels` of all together."""

    folder: Path
    files: int
    sizes: str
    pixels: int


def photograph(folder: Path) -> Pictures:
    """One JPEG file that looks enough like a photograph: smooth, with some noise."""
    random = np.random.default_rng(0)
    width, height = PHOTOGRAPH
    coarse = Image.fromarray(random.integers(0, 256, (height // 50, width // 50, 3), np.uint8)).resize(
        PHOTOGRAPH, Image.Resampling.BICUBIC
    )
    noise = random.integers(-8, 9, (height, width, 1), np.int16)
    folder.mkdir()
    Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)).save(
        folder / "photograph.jpg", quality=92
    )
    return Pictures(folder, 1, f"{height}x{width}", height * width)


def small_files(folder: Path) -> Pictures:
    """FILES PNG files of different sizes."""
    random, pixels = np.random.default_rng(0), 0
    folder.mkdir()
    for i in range(FILES):
        height, width = (int(edge) for edge in random.integers(*EDGES, 2))
        coarse = Image.fromarray(random.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{i:04}.png")
        pixels += height * width
    return Pictures(folder, FILES, f"{EDGES[0]} to {EDGES[1] - 1}", pixels)


def upscale(pictures: Path, out: Path, device: torch.device) -> Use:
    """Up-scale a folder, in a new process. RuntimeError with its last words when that fails."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.upscaling", str(device), str(pictures), str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    made, wanted = len(list(out.glob("*"))), len(list(pictures.iterdir()))
    if done.returncode or made != wanted:
        raise RuntimeError(
            f"upscale: {made} of {wanted} pictures made: {(done.stderr.strip().splitlines() or ['no word'])[-1]}"
        )
    return Use(**json.loads(done.stdout.splitlines()[-1]))


def _use(name: str, pictures: str, out: str) -> int:
    device = devices.pick(name)
    computing = 0.0
    call = Upscaler.__call__

    @functools.wraps(call)
    def timed(upscaler: Upscaler, image: np.ndarray) -> np.ndarray:
        nonlocal computing
        start = time.perf_counter()
        try:
            return call(upscaler, image)
        finally:
            computing += time.perf_counter() - start

    Upscaler.__call__ = timed
    start = time.perf_counter()
    code = main(["upscale", "-i", pictures, "-o", out, "--device", name])
    seconds = time.perf_counter() - start
    allocated = 0 if devices.is_host(device) else torch.accelerator.max_memory_allocated()
    print(json.dumps(Use(seconds, computing, status("VmHWM"), allocated)._asdict()))
    return code


if __name__ == "__main__":
    sys.exit(_use(*sys.argv[1:]))
