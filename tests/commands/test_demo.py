"""`rdn-fast demo` with fewer steps."""

import json
import os
import shlex
import signal

import numpy as np
import pytest
from PIL import Image
from runs import events

from rdn_fast.cli import main
from rdn_fast.commands import demo
from rdn_fast.config import PRESETS
from rdn_fast.data.h5 import PairedH5
from rdn_fast.training.report import Report

pytest.importorskip("skimage")


def test_demo_ends_with_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "demo", PRESETS["demo"] | {"max_steps": 3})
    out = tmp_path / "demo"
    assert main(["demo", "--outputs-dir", str(out), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert f"look at:   {out / 'compare.png'}" in text
    assert "dB from bicubic" in text
    assert f"rdn-fast upscale -i PICTURES -o larger -w {out / 'best.pth'}\n" in text
    assert "rdn-b" not in text  # which takes days on a CPU
    assert sum(json.loads(line)["event"] == "step" for line in (out / "metrics.jsonl").open()) == 3
    picture = np.asarray(Image.open(out / "compare.png"))
    assert picture.shape == (688, 1192, 3)
    trained = {name.split(" ")[0] for name in PairedH5(out / "photographs_x2.h5", 2).names()}
    held_out = set(PairedH5(out / "held_out_x2.h5", 2).names())
    assert held_out == {"astronaut", "chelsea"}
    assert not trained & held_out
    assert len({"motorcycle_left", "motorcycle_right"} & trained) != 1  # one scene stays on one side


def test_a_stopped_demo_says_what_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "demo", PRESETS["demo"] | {"max_steps": 6})
    advance = Report.advance

    def stopping(report):
        advance(report)
        if report._bar._done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Report, "advance", stopping)
    out = tmp_path / "the demo"
    assert main(["demo", "--outputs-dir", str(out), "--device", "cpu"]) == 128 + signal.SIGTERM
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("go on with: rdn-fast ")]
    monkeypatch.setattr(Report, "advance", advance)
    assert main(shlex.split(line.removeprefix("go on with: rdn-fast "))) == 0
    (resumed,) = events(out, "resume")
    assert 3 <= resumed["step"] < 6
    assert [record["step"] for record in events(out, "step")] == [1, 2, 3, 4, 5, 6]


def test_demo_without_photographs_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda _: None)
    assert main(["demo", "--outputs-dir", str(tmp_path / "demo")]) == 2
    assert "pip install 'scikit-image" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
