"""`rdn-fast demo` with fewer steps."""

import json

import numpy as np
import pytest
from PIL import Image

from rdn_fast.cli import main
from rdn_fast.commands import demo
from rdn_fast.config import PRESETS
from rdn_fast.data.h5 import PairedH5

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
    assert picture.shape == (688, 1192, 3)
    trained = {name.split(" ")[0] for name in PairedH5(out / "photographs_x2.h5", 2).names()}
    held_out = set(PairedH5(out / "held_out_x2.h5", 2).names())
    assert held_out == {"astronaut", "chelsea"}
    assert not trained & held_out
    assert len({"motorcycle_left", "motorcycle_right"} & trained) != 1  # one scene stays on one side


def test_demo_without_photographs_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda _: None)
    assert main(["demo", "--outputs-dir", str(tmp_path / "demo")]) == 2
    assert "pip install 'scikit-image" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
