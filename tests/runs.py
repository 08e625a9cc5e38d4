"""Small real training runs for the tests: their data, flags, processes and results."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from rdn_fast.data.h5_writer import write_pairs
from rdn_fast.data.pairs import degrade
from tests.waiting import PATIENCE  # also where tests is no folder of modules: in the campaign

# At these sizes two threads per process only slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
_TINY_MODEL = "--num-features 6 --growth-rate 4 --num-blocks 2 --num-layers 2"
LEVEL = os.environ.get("RDN_FAST_TEST_LEVEL", "O0")  # what `--opt-level auto` is in tests: nothing is timed for it
TINY = (*_TINY_MODEL.split(), "--patch-size", "8", "--lr", "1e-3", "--opt-level", LEVEL)


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a synthetic image, uint8 [height, width, 3], with smooth light, edges and texture."""
    rng = np.random.default_rng(seed)
    y, x = (axis / max(height, width) for axis in np.mgrid[0:height, 0:width])
    image = np.empty((height, width, 3))
    for channel in range(3):  # smooth light
        angle, waves, phase = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 2), rng.uniform(0, 2 * np.pi)
        image[..., channel] = 120 + 60 * np.sin(2 * np.pi * waves * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    for _ in range(4):  # edges
        angle, (top, left) = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1, 2)
        image[np.cos(angle) * (x - left) + np.sin(angle) * (y - top) > 0] += rng.uniform(-40, 40, 3)
    image += 12 * np.sin(2 * np.pi * (x * rng.uniform(10, 20) + y * rng.uniform(10, 20)))[..., None]  # fine texture
    image += rng.normal(0, 3, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def make_data(folder: Path, images: int = 21, scale: int = 2) -> Path:
    """Write DIV2K_x{scale}.h5 with `images` pairs and Set5_x{scale}.h5 with two to `folder`, and return it."""
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = rng.integers(20, 40, (images, 2)) * scale // 2
    training = [degrade(f"train{i}", photograph(h, w, seed=i), scale) for i, (h, w) in enumerate(sizes)]
    evaluation = [degrade(f"eval{i}", photograph(40 + i, 36, seed=100 + i), scale) for i in range(2)]
    write_pairs(folder / f"DIV2K_x{scale}.h5", training)
    write_pairs(folder / f"Set5_x{scale}.h5", evaluation)
    return folder


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "rdn_fast", *(str(word) for word in arguments)]


def cli(*arguments, timeout: float = PATIENCE, **options) -> subprocess.CompletedProcess:
    """Run rdn-fast in a process of its own and capture stdout and stderr as text."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(options.pop("env", None) or {})}
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        env=environment,
        check=False,
        **options,
    )


def events(outputs: Path, kind: str) -> list[dict]:
    """Return the records of one kind in metrics.jsonl. NaN and infinity are errors."""
    lines = (outputs / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=lambda word: 1 / 0) for line in lines]
    return [record for record in records if record["event"] == kind]


def weights(outputs: Path, name: str = "last.pth") -> dict[str, torch.Tensor]:
    return torch.load(outputs / name, weights_only=True)


def ranks_of(process: subprocess.Popen) -> list[int]:
    """Return the process ids of a launcher's ranks."""
    children = ["ps", "-o", "pid=", "--ppid", str(process.pid)]
    listed = subprocess.run(children, capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def kill(process: subprocess.Popen) -> None:
    """Kill -9 a launcher and all its ranks, as a machine that goes down would."""
    for pid in (process.pid, *ranks_of(process)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


_RESULTS = {"step", "epoch", "lr", "loss", "skipped", "loss_scale", "psnr_y", "psnr_y_compat"}  # the rest is speeds


def assert_same_run(interrupted: Path, whole: Path, kinds: tuple[str, ...] = ("step", "loss_scale", "epoch")) -> None:
    """Check that both runs have the same weights and crops, byte for byte, and the same records but for speeds.

    kinds: of the records. Without epochs, whose validations leave the crops, crops are not compared.
    """
    patterns = ("*.pth", "validation_crops/*") if "epoch" in kinds else ("*.pth",)
    ours, theirs = (
        {file.name: file.read_bytes() for pattern in patterns for file in run.glob(pattern)}
        for run in (interrupted, whole)
    )
    assert ours == theirs
    assert ours
    for kind in kinds:
        ours, theirs = (
            [{key: record[key] for key in record.keys() & _RESULTS} for record in events(run, kind)]
            for run in (interrupted, whole)
        )
        assert ours == theirs, kind


def assert_user_error(result: subprocess.CompletedProcess, *words: str) -> None:
    """Check for exit code 2 and exactly one line on stderr, with all the words: no usage, no traceback."""
    assert result.returncode == 2, result
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("rdn-fast: error: ")
    for word in words:
        assert word in lines[0], lines[0]
