"""The demo as `rdn-fast demo` runs it, with fewer steps."""

import json

import numpy as np
import pytest
from PIL import Image

from rdn_fast import compare, demo
from rdn_fast.cli import main
from rdn_fast.config import PRESETS
from rdn_fast.data.h5 import Pairs

pytest.importorskip("skimage")


def test_demo_ends_with_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "demo", PRESETS["demo"] | {"max_steps": 3})
    out = tmp_path / "demo"
    assert main(["demo", "--outputs-dir", str(out), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert f"look at:   {out / 'compare.png'}" in text
    assert "dB from bicubic" in text
    assert sum(json.loads(line)["event"] == "step" for line in (out / "metrics.jsonl").open()) == 3
    picture = np.asarray(Image.open(out / "compare.png"))
    assert picture.shape == (652, 896, 3)
    trained = {name.split(" ")[0] for name in Pairs(out / "photographs_x2.h5", 2).names()}
    held_out = set(Pairs(out / "held_out_x2.h5", 2).names())
    assert held_out == {"astronaut", "chelsea"}
    assert not trained & held_out
    assert len({"motorcycle_left", "motorcycle_right"} & trained) != 1  # one scene stays on one side


def test_picture_shows_the_window_that_bicubic_gets_most_wrong():
    hr = np.zeros((300, 400, 3), np.uint8)
    wrong = hr.copy()
    wrong[150:230, 200:280] = 90
    top, left = compare._worst_window(wrong, hr)
    assert (top, left) == (144, 192)
    assert compare._worst_window(hr[:50, :40], hr[:50, :40]) == (0, 0)  # smaller than a window


def test_demo_without_photographs_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda _: None)
    assert main(["demo", "--outputs-dir", str(tmp_path / "demo")]) == 2
    assert "pip install 'scikit-image" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
