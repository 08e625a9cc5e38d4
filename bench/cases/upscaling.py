"""`rdn-fast upscale` with the shipped model in a new process: a photograph of 12 megapixels, and 1,000 small files."""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from bench import process, tables
from bench.case import Case, Column, Gate
from bench.measure import Bench
from bench.models import words
from bench.timing import Times
from rdn_fast import devices
from rdn_fast.cli import main
from rdn_fast.pictures.tiled import Upscaler
from rdn_fast.weights.convert import load_model

LARGE, SMALL = "photograph", "small files"
PHOTOGRAPH = 4000, 3000  # width, height
FILES = 1000
EDGES = 48, 97  # of the small files: from, to (less one)


class Use(NamedTuple):
    """What the command took: wall seconds, imports left out; those in which the model computed; peak memory in bytes.

    `resident` is that of the whole process, `allocated` of the device.
    """

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
    """Write one JPEG file that looks enough like a photograph: smooth, with some noise."""
    random, bicubic = np.random.default_rng(0), Image.Resampling.BICUBIC
    width, height = PHOTOGRAPH
    coarse = Image.fromarray(random.integers(0, 256, (height // 50, width // 50, 3), np.uint8))
    noise = random.integers(-8, 9, (height, width, 1), np.int16)
    noisy = np.clip(np.asarray(coarse.resize(PHOTOGRAPH, bicubic)) + noise, 0, 255)
    folder.mkdir()
    Image.fromarray(noisy.astype(np.uint8)).save(folder / "photograph.jpg", quality=92)
    return Pictures(folder, 1, f"{height}x{width}", height * width)


def small_files(folder: Path) -> Pictures:
    """Write FILES PNG files of different sizes."""
    random, pixels = np.random.default_rng(0), 0
    folder.mkdir()
    for i in range(FILES):
        height, width = (int(edge) for edge in random.integers(*EDGES, 2))
        coarse = Image.fromarray(random.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{i:04}.png")
        pixels += height * width
    return Pictures(folder, FILES, f"{EDGES[0]} to {EDGES[1] - 1}", pixels)


def run(bench: Bench, command: str) -> None:
    """Write seconds, peak memory, and how long the model waited for files."""
    model_config = load_model(None, bench.device).config
    with tempfile.TemporaryDirectory() as name:
        for case, make in ((LARGE, photograph), (SMALL, small_files)):
            pictures = make(Path(name) / case)
            shape = f"{words(model_config)}, {pictures.sizes}"
            print(f"\n{case}, {shape}")
            try:
                use = upscale(pictures.folder, Path(name) / f"{case} larger", bench.device)
            except RuntimeError as error:
                bench.fail(str(error))
                continue
            note = "peak of the whole process"
            if not devices.is_host(bench.device):
                note = f"peak of the device; of the process {use.resident / 1e6:.0f} MB"
            gflops = 2 * model_config.macs(1, 1) * pictures.pixels / use.seconds / 1e9
            figures = {"images_s": pictures.files / use.seconds, "gflops": gflops, "note": note}
            figures |= {"peak_mb": (use.allocated or use.resident) / 1e6, "waited": 1 - use.computing / use.seconds}
            bench.row(case, "rdn_fast", bench.default, 1, shape, Times([use.seconds]), **figures)


def upscale(pictures: Path, out: Path, device: torch.device) -> Use:
    """Up-scale a folder in a new process. RuntimeError if that fails."""
    use = Use(*process.call(measure, str(device), str(pictures), str(out)))
    made, wanted = len(list(out.glob("*"))), len(list(pictures.iterdir()))
    if made != wanted:
        raise RuntimeError(f"upscale: {made} of {wanted} pictures made")
    return use


def measure(name: str, pictures: str, out: str) -> Use:
    """Run the command in this process. Exit as it does if it fails."""
    device, computing, call = devices.pick(name), 0.0, Upscaler.__call__

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
    if code := main(["upscale", "-i", pictures, "-o", out, "--device", name]):
        sys.exit(code)
    seconds = time.perf_counter() - start
    allocated = 0 if devices.is_host(device) else torch.accelerator.max_memory_allocated()
    return Use(seconds, computing, process.memory("VmHWM"), allocated)


_MEMORY = "photograph of 12 megapixels, peak memory, MB"
_IDLE = "1,000 small files: share of time without work for the model"
CASE = Case(
    order=60,
    rows=(LARGE, SMALL),
    commands=("upscale", "all"),
    run=run,
    gates=(
        Gate(_MEMORY, LARGE, "peak_mb", 3 * 1.024**3 * 1e3, at_most=True, shape=""),
        Gate(_IDLE, SMALL, "waited", 0.1, at_most=True, shape=""),
    ),
    block="upscaling",
    columns=(
        Column("LR pixels", lambda row: row.shape.rsplit(", ", 1)[1]),
        tables.column("seconds", "seconds", "{:.1f}"),
        tables.IMAGES,
        tables.GFLOPS,
        tables.column("peak memory", "peak_mb", "{:,.0f} MB"),
        tables.column("model without work", "waited", "{:.1%}"),
    ),
)
