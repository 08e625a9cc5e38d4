"""The shipped model: its file and metadata, and its gain over bicubic on photographs that it has not seen."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rdn_fast.commands.demo import photographs
from rdn_fast.config import make_configs
from rdn_fast.data.degradation import PLAIN
from rdn_fast.data.images import read_image
from rdn_fast.data.pairs import degrade
from rdn_fast.evaluation import metrics
from rdn_fast.pictures.tiled import Upscaler
from rdn_fast.weights.convert import SHIPPED, load_model, read_weights
from tools.small_model import PHOTOGRAPHS

ROOT = Path(__file__).parents[2]


def test_the_file_says_what_it_is():
    weights = read_weights(SHIPPED)
    assert SHIPPED.stat().st_size <= 3_000_000
    assert weights.config == make_configs({}, "small")[0]
    assert weights.metadata["licence"] == "MIT"
    assert "Kodak" in weights.metadata["training_data"]
    assert (weights.metadata["scale"], weights.metadata["value_range"]) == ("2", "0..1")


@pytest.mark.parametrize(("name", "gain"), [("hubble_deep_field.jpg", 0.5), ("retina.jpg", 0.3), ("ihc.png", 1.0)])
def test_it_is_better_than_bicubic(name, gain):
    pytest.importorskip("skimage")
    assert name not in PHOTOGRAPHS
    pair = degrade(name, read_image(photographs((name,)) / name)[200:400, 200:400], 2)
    ours = Upscaler(load_model(None, "cpu"))(pair.lr)
    cubic = PLAIN.resize(pair.lr, *pair.hr.shape[:2])
    assert metrics.psnr_y(ours, pair.hr, 2) > metrics.psnr_y(cubic, pair.hr, 2) + gain
    assert np.abs(ours.mean((0, 1)) - pair.hr.mean((0, 1))).max() < 1  # no tint


@pytest.mark.slow
def test_a_wheel_holds_it(tmp_path):
    command = (
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        ROOT,
    )
    subprocess.run(command, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {"rdn_fast/weights/small_x2.safetensors", "rdn_fast/weights/small_x2.md", "rdn_fast/rdb/winograd.c"} <= held
