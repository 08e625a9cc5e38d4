"""Small real training runs for the tests: data, flags, processes, and what they leave behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from rdn_fast.data.prepare import degrade, write_pairs

# Two threads per process only get in each other's way at these sizes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

TINY = ("--num-features", "6", "--growth-rate", "4", "--num-blocks", "2", "--num-layers", "2", "--patch-size", "8", "--lr", "1e-3")


def photograph(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3] with gradients, edges and texture."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x * a + y * b + c) for a, b, c in rng.uniform(-0.6, 0.6, (3, 3))]
    image = np.stack([128 + 60 * waves[k] + 50 * ((x + y + k) // 7 % 2) + rng.normal(0, 4, (height, width)) for k in range(3)], axis=2)
    return np.clip(image, 0, 255).astype(np.uint8)


def make_data(folder: Path, images: int = 21, scale: int = 2) -> Path:
    """DIV2K_x{scale}.h5 with `images` pairs and Set5_x{scale}.h5 with two, in `folder`."""
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = rng.integers(20, 40, (images, 2)) * scale // 2
    write_pairs(folder / f"DIV2K_x{scale}.h5", [degrade(f"train{i}", photograph(rng, h, w), scale) for i, (h, w) in enumerate(sizes)])
    write_pairs(folder / f"Set5_x{scale}.h5", [degrade(f"eval{i}", photograph(rng, 40 + i, 36), scale) for i in range(2)])
    return folder


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "rdn_fast", *(str(word) for word in arguments)]


def cli(*arguments, timeout: float = 120, **options) -> subprocess.CompletedProcess:
    """Run rdn-fast in a process of its own; text of stdout and stderr captured."""
    environment = {**os.environ, **options.pop("env", {})}
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout, env=environment, check=False, **options)


def events(outputs: Path, kind: str) -> list[dict]:
    """The records of one kind in metrics.jsonl, each line parsed strictly."""
    records = [json.loads(line, parse_constant=lambda word: 1 / 0) for line in (outputs / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["event"] == kind]


def weights(outputs: Path, name: str = "last.pth") -> dict[str, torch.Tensor]:
    return torch.load(outputs / name, weights_only=True)


def assert_user_error(result: subprocess.CompletedProcess, *words: str) -> None:
    """Exit code 2 and exactly one line on stderr, which holds all the words; no usage text, no traceback."""
    assert result.returncode == 2, result
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("rdn-fast: error: ")
    for word in words:
        assert word in lines[0], lines[0]
