"""prepare --tiles, --sizes and --unseen: what is cut out of a picture, and what is left out."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rdn_fast.data.cuts import Cuts
from rdn_fast.data.degradation import Degradation
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.pairs import degrade
from rdn_fast.errors import UserError


@pytest.fixture
def prepare(cli, tmp_path):
    """prepare(folder, *flags): run the command; what it ended with. It writes tmp_path / "out.h5"."""
    return lambda folder, *flags: cli("prepare", "--images-dir", folder, "--output-path", tmp_path / "out.h5", *flags)


@pytest.mark.parametrize(("scale", "kind"), [(2, "bi"), (3, "bd"), (4, "dn")])
def test_tiles_are_parts_of_the_whole_pair_and_cover_it(photograph, seed, scale, kind):
    rng = np.random.default_rng(seed)
    for _ in range(5):
        (height, width), edge = rng.integers(20, 300, 2), int(rng.integers(16, 60))
        image, degradation = photograph(height, width, seed=seed), Degradation(kind=kind)
        whole = degrade("a", image, scale, degradation=degradation)
        lr, hr = np.zeros_like(whole.lr), np.zeros_like(whole.hr)
        tiles = Cuts(scale, tile=edge, degradation=degradation).of_image("a", image)
        assert len({tile.name for tile in tiles}) == len(tiles)
        for tile in tiles:
            name, size, place = tile.name.split()
            assert (name, size) == ("a", f"{width}x{height}")
            y, x = map(int, place.split(","))
            h, w = tile.lr.shape[:2]
            assert (h, w) == (min(edge, lr.shape[0]), min(edge, lr.shape[1]))
            lr[y : y + h, x : x + w] = tile.lr
            hr[scale * y : scale * (y + h), scale * x : scale * (x + w)] = tile.hr
        assert np.array_equal(lr, whole.lr)
        assert np.array_equal(hr, whole.hr)


def test_sizes_are_reduced_by_lanczos_and_come_largest_first(photograph):
    image = photograph(60, 80)
    pairs = Cuts(2, sizes=(0.5, 1.0)).of_image("a", image)
    assert [pair.name for pair in pairs] == [f"a {size} (crop {k})" for size in ("80x60", "40x30") for k in range(5)]
    half = np.asarray(Image.fromarray(image).resize((40, 30), Image.Resampling.LANCZOS))
    assert np.array_equal(pairs[5].hr, half[:14, :20])  # 15 rows, cropped to a multiple of the scale
    assert np.array_equal(pairs[5].lr, degrade("", half[:15, :20], 2).lr)


def test_a_size_that_is_too_small_is_left_out_and_a_picture_that_is_refused(photograph):
    cuts = Cuts(2, tile=16, sizes=(1.0, 0.5), smallest=20)
    assert {pair.name.split()[1] for pair in cuts.of_image("a", photograph(60, 70))} == {"70x60"}
    with pytest.raises(ValueError, match="smaller than a patch of 20 LR pixels"):
        cuts.of_image("a", photograph(39, 70))
    assert len(Cuts(8, sizes=(1.0, 0.1)).of_image("a", photograph(20, 20))) == 5
    with pytest.raises(ValueError, match="too small for x8"):
        Cuts(8, sizes=(0.1,)).of_image("a", photograph(20, 20))


def test_given_lr_pictures_are_cut_into_tiles_too(image_folder, prepare, photograph, tmp_path):
    image = photograph(90, 120)
    hr = image_folder({"a.png": image}, name="HR")
    lr = image_folder({"ax2.png": photograph(45, 60, seed=9)}, name="LR")
    assert prepare(hr, "--lr-dir", lr, "--tiles", 30).code == 0
    pairs = [*PairedH5(tmp_path / "out.h5", 2)]
    assert [pair.name for pair in pairs] == [f"a {y},{x}" for y in (0, 15) for x in (0, 20, 30)]
    assert np.array_equal(pairs[4].hr, image[30:90, 40:100])
    assert np.array_equal(pairs[4].lr, photograph(45, 60, seed=9)[15:45, 20:50])
    message = prepare(hr, "--lr-dir", lr, "--sizes", 1, 0.5).user_error()
    assert message.startswith("--sizes: LR pictures of --lr-dir")


def test_what_a_set_shows_is_left_out_also_of_folders_inside(image_folder, prepare, photograph, tmp_path):
    pictures = {f"{i}.png": photograph(64, 80, seed=i) for i in range(3)}
    folder = image_folder(pictures)
    half = np.asarray(Image.fromarray(pictures["1.png"]).resize((40, 32), Image.Resampling.BICUBIC))
    shown = image_folder({"woman.png": half}, name="benchmark/Set/HR")
    (tmp_path / "benchmark" / "README.txt").write_text("about")
    ended = prepare(folder, "--unseen", tmp_path / "benchmark")
    assert ended.code == 0
    assert f"left out {folder}/1.png: it shows what {shown}/woman.png shows" in ended.out
    assert f"--unseen: passed over {tmp_path}/benchmark/README.txt: " in ended.out
    assert "10 pairs from 2 images" in ended.out
    assert prepare(folder, "--unseen", folder).user_error() == (
        f"--images-dir {folder}: no image is left, --unseen shows all 3; give others"
    )
    assert "README.txt" in prepare(folder, "--strict", "--unseen", tmp_path / "benchmark").user_error()
    assert prepare(folder, "--unseen", tmp_path / "none").user_error().startswith(f"--unseen {tmp_path}/none: no such")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile": 4}, "--tiles 4: is an edge in LR pixels; give at least 16"),
        ({"sizes": (1.0, 1.0)}, "--sizes 1 1: give each size once"),
        ({"sizes": (0.0,)}, "--sizes 0: give each size once, above 0"),
        ({"sizes": (1.5,)}, "--sizes 1.5: give each size once, above 0 and at most 1"),
        ({"sizes": (float("nan"),)}, "--sizes nan: "),
        ({"whole": True, "tile": 96}, "--tiles 96: not with --eval"),
        ({"whole": True, "sizes": (1.0, 0.5)}, "--sizes 1 0.5: not with --eval"),
    ],
    ids=str,
)
def test_values_that_mean_nothing(options, words):
    with pytest.raises(UserError) as error:
        Cuts(2, **options)
    assert str(error.value).startswith(words)
