"""The shipped models: their files, metadata and cards, and their gain over bicubic on photographs not seen before."""

import hashlib
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
from rdn_fast.weights.convert import load_model, read_weights
from rdn_fast.weights.shipped import select, shipped_models
from tools.small_model import PHOTOGRAPHS

ROOT = Path(__file__).parents[2]
GAINS = {"hubble_deep_field.jpg": 0.5, "retina.jpg": 0.3, "ihc.png": 1.0}  # dB at x2, at least; above 0 at others

each_model = pytest.mark.parametrize("model", shipped_models(), ids=lambda model: model.name)


def test_x2_is_the_one_without_name_and_scale():
    assert select().scale == 2


@each_model
def test_the_file_says_what_it_is(model):
    weights = read_weights(model.file)
    assert model.file.stat().st_size <= 3_000_000
    narrow = {"upsample_channels": weights.config.upsample_channels}  # x3's and x4's have fewer for that
    assert weights.config == make_configs({"scale": model.scale, **narrow}, "small")[0]
    assert model.name == f"small_x{model.scale}"
    assert (weights.metadata["scale"], weights.metadata["value_range"]) == (str(model.scale), "0..1")
    for key in ("licence", "training_data"):
        assert weights.metadata[key] not in ("", "not stated")


@each_model
def test_the_card_says_what_the_file_is(model):
    card = model.card.read_text(encoding="utf-8")
    assert card.startswith(f"# {model.name}: ")
    assert hashlib.sha256(model.file.read_bytes()).hexdigest() in card
    assert model.metadata["licence"] in card.partition("## Licence")[2]
    assert 25 < model.psnr_y("Set5") < 45


@each_model
@pytest.mark.parametrize("name", GAINS)
def test_it_is_better_than_bicubic(model, name):
    pytest.importorskip("skimage")
    assert name not in PHOTOGRAPHS
    scale = model.scale
    hr = read_image(photographs((name,)) / name)[200:404, 200:404]
    pair = degrade(name, hr, scale)
    ours = Upscaler(load_model(model.name, "cpu"))(pair.lr)
    cubic = PLAIN.resize(pair.lr, *pair.hr.shape[:2])
    gain = metrics.psnr_y(ours, pair.hr, scale) - metrics.psnr_y(cubic, pair.hr, scale)
    assert gain > (GAINS[name] if scale == 2 else 0)
    assert np.abs(ours.mean((0, 1)) - pair.hr.mean((0, 1))).max() < 1  # no tint


@pytest.mark.slow
def test_a_wheel_holds_them(tmp_path):
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
    models = {f"rdn_fast/weights/{file.name}" for model in shipped_models() for file in (model.file, model.card)}
    assert {*models, "rdn_fast/rdb/winograd.c"} <= held
