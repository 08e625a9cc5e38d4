"""Training tiles of photographs: every part, in every size, and nothing that an evaluation set shows."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from runs import photograph

from rdn_fast.data.alike import alike
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.pairs import degrade
from tools.photographs import main


@pytest.fixture
def folder(tmp_path):
    """Return folder(name, {file: image}), which writes PNG files to a new folder."""

    def make(name, pictures):
        (tmp_path / name).mkdir()
        for file, picture in pictures.items():
            Image.fromarray(picture).save(tmp_path / name / file)
        return str(tmp_path / name)

    return make


def test_tiles_cover_every_picture_in_every_size(folder, tmp_path, capsys):
    large, small = photograph(420, 300, seed=1), photograph(90, 110, seed=2)
    out = tmp_path / "tiles.h5"
    folders = folder("a", {"large.png": large, "tiny.png": photograph(60, 200)}), folder("b", {"small.png": small})
    assert main([*folders, "--output-path", str(out)]) == 0
    pairs, told = PairedH5(out, 2), capsys.readouterr().out
    assert f"{len(pairs)} tiles of 2 photographs" in told
    assert f"skipped {tmp_path}/a/tiny.png: smaller than a patch" in told
    expected = ("large 300x420", "large 240x336", "large 180x252", "small 110x90", "small 88x72")
    assert {" ".join(name.split()[:2]) for name in pairs.names()} == set(expected)
    # In the first size, put back where they were cut, they are the whole pair.
    whole = degrade("large", large, 2)
    lr, hr = np.zeros_like(whole.lr), np.zeros_like(whole.hr)
    for name, part_lr, part_hr in pairs:
        if name.startswith("large 300x420"):
            y, x = map(int, name.split()[2].split(","))
            lr[y : y + part_lr.shape[0], x : x + part_lr.shape[1]] = part_lr
            hr[2 * y : 2 * y + part_hr.shape[0], 2 * x : 2 * x + part_hr.shape[1]] = part_hr
    assert np.array_equal(lr, whole.lr)
    assert np.array_equal(hr, whole.hr)
    assert min(min(pair.lr.shape[:2]) for pair in pairs) >= 32  # a patch of the preset fits into every one


def test_what_an_evaluation_set_shows_is_left_out(folder, tmp_path, capsys):
    pictures = {f"{i}.png": photograph(160, 200, seed=i) for i in range(6)}
    shown = Image.fromarray(pictures["3.png"]).resize((130, 100), Image.Resampling.BICUBIC)
    mirrored = pictures["4.png"][2:, 199:2:-1]
    sets = (
        folder("Set", {"other.png": photograph(150, 150, seed=50), "woman.png": np.asarray(shown)}),
        folder("Set2", {"zebra.png": mirrored}),
    )
    out = tmp_path / "tiles.h5"
    assert main([folder("a", pictures), "--output-path", str(out), "--unseen", *sets]) == 0
    told = capsys.readouterr().out
    assert told.count("left out ") == 2
    assert f"left out {tmp_path}/a/3.png: it shows what {tmp_path}/Set/woman.png shows" in told
    assert f"left out {tmp_path}/a/4.png: it shows what {tmp_path}/Set2/zebra.png shows" in told
    assert {name.split()[0] for name in PairedH5(out, 2).names()} == {"0", "1", "2", "5"}


def test_a_plain_picture_is_like_no_other(folder, tmp_path):
    grey = np.full((80, 80, 3), 90, np.uint8)
    a, b = folder("a", {"grey.png": grey}), folder("b", {"grey.png": grey + 50})
    assert alike([Path(a, "grey.png")], [b], print) == {}


def test_prepare_makes_the_same_file(folder, cli, tmp_path):
    pictures = {f"{i}.png": photograph(210 + 40 * i, 330 - 20 * i, seed=i) for i in range(2)}
    source, shown = folder("a", pictures), folder("Set", {"x.png": pictures["1.png"][:, ::-1]})
    assert main([source, "--output-path", str(tmp_path / "tool.h5"), "--unseen", shown]) == 0
    flags = "--tiles", 96, "--sizes", 0.6, 1, 0.8, "--unseen", shown
    assert cli("prepare", "--images-dir", source, "--output-path", tmp_path / "ours.h5", *flags).code == 0
    assert (tmp_path / "ours.h5").read_bytes() == (tmp_path / "tool.h5").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], ("nowhere", "no such folder")),
        (["a", "--unseen", "nowhere"], ("nowhere",)),
        (["broken"], ("FOLDER: none of its 1 files is an image",)),
        (["small"], ("FOLDER: none of its 1 files is an image",)),
        (["a", "--unseen", "a"], ("FOLDER: no image is left, --unseen shows all 1",)),
        (["a", "--unseen", "broken"], ("--unseen broken: none of its files is an image",)),
        (["a", "--output-path", "a/0.png"], ("--output-path a/0.png", ".h5")),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    folder("a", {"0.png": photograph(80, 80)})
    folder("small", {"0.png": photograph(40, 90)})
    folder("broken", {})
    (tmp_path / "broken" / "x.png").write_bytes(b"no picture")
    h5py.File(tmp_path / "tiles.h5", "w").close()  # of an earlier run
    earlier = (tmp_path / "tiles.h5").read_bytes()
    assert main([*arguments[:1], "--output-path", "tiles.h5", *arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("photographs: error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error
    assert (tmp_path / "tiles.h5").read_bytes() == earlier
    assert (tmp_path / "a" / "0.png").read_bytes().startswith(b"\x89PNG")
