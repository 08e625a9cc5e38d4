"""Which shipped model a picture goes through: that of -s or -n, or the best for its size."""

import numpy as np
import pytest
from PIL import Image
from runs import photograph
from stand_in import Nearest, files

import rdn_fast
from rdn_fast.errors import UserError
from rdn_fast.pictures import upscale, upscale_files
from rdn_fast.pictures.tiled import Upscaler
from rdn_fast.weights.convert import load_model

pytestmark = pytest.mark.usefixtures("untimed", "three_models")


@pytest.fixture
def enlarge(cli, monkeypatch, tree):
    """enlarge(*flags) runs `rdn-fast upscale` with the stand-in on a.png of 6 x 5 pixels."""
    folder = tree("a.png")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(upscale_files, "Upscaler", Nearest)
    return lambda *flags: cli("upscale", "-i", "a.png", "-o", "out", "--device", "cpu", *flags)


@pytest.mark.parametrize(
    ("flags", "scale", "size"),
    [
        ((), 2, (12, 10)),
        (("-s", 2), 2, (12, 10)),
        (("-s", 3), 3, (18, 15)),
        (("--scale", 4), 4, (24, 20)),
        (("-n", "small_x3"), 3, (18, 15)),
        (("--model_name", "small_x4", "-s", 4), 4, (24, 20)),
        (("-w", "small_x4"), 4, (24, 20)),
        (("--outscale", 1.5), 2, (9, 8)),
        (("--outscale", 3), 3, (18, 15)),
        (("--outscale", 3.5), 4, (21, 18)),
        (("--outscale", 6), 3, (36, 30)),
        (("--outscale", 12), 4, (72, 60)),
        (("--outscale", 3, "-s", 4), 4, (18, 15)),
        (("--outscale", 4, "-n", "small_x2"), 2, (24, 20)),
    ],
    ids=str,
)
def test_the_model_is_told_and_its_scale_used(enlarge, flags, scale, size):
    ended = enlarge(*flags)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"small_x{scale}: RDN x{scale} D2 C2 G4 G0 6, on ")
    assert ended.out.count("RDN x") == 1
    assert Image.open("out/a_out.png").size == size
    if "through" in ended.out:
        assert f"through the x{scale} model" in ended.out


@pytest.mark.parametrize(
    ("flags", "made"),
    [
        (("--longest", 12), "12x10 pixels (x2): through the x2 model once"),
        (("--longest", 18), "18x15 pixels (x3): through the x3 model once"),
        (("--width", 20), "20x17 pixels (x3.333): through the x4 model once, then resampled"),
        (("--height", 45), "54x45 pixels (x9): through the x3 model twice"),
        (("--width", 6, "--height", 15), "6x15 pixels (stretched x1 by x3): through the x3 model once, then resampled"),
        (("--longest", 3), "3x2 pixels (x0.5): resampled without the model"),
        (("--longest", 12, "-s", 4), "12x10 pixels (x2): through the x4 model once, then resampled"),
    ],
    ids=str,
)
def test_a_size_in_pixels_chooses_for_each_picture(enlarge, flags, made):
    ended = enlarge(*flags)
    assert (ended.code, ended.err) == (0, "")
    assert f"\na.png: {made}\n" in ended.out


def test_pictures_of_one_folder_take_their_own(enlarge):
    Image.new("RGB", (10, 8)).save("b.png")
    ended = enlarge("-i", "b.png", "--longest", 20)
    assert "a.png: 20x17 pixels (x3.333): through the x4 model once, then resampled\n" in ended.out
    assert "b.png: 20x16 pixels (x2): through the x2 model once\n" in ended.out
    assert [Image.open(f"out/{name}_out.png").size for name in "ab"] == [(20, 17), (20, 16)]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            ("-s", 8),
            "--scale 8: no model for it comes with rdn_fast, only small_x2 (x2), small_x3 (x3), small_x4 (x4); "
            "give one of their scales, or weights for x8 (--outscale takes any factor)",
        ),
        (
            ("-n", "small"),
            "--model-name small: no such model comes with rdn_fast; give one of small_x2 (x2), small_x3 (x3), "
            "small_x4 (x4)",
        ),
        (("-n", "small_x3", "-s", 2), "--model-name small_x3 and --scale 2: this model is for x3; give one of the two"),
        (
            ("-n", "small_x3", "-w", "a.pth"),
            "--weights-file a.pth and --model-name small_x3 each say which weights are taken; give one of them",
        ),
    ],
    ids=str,
)
def test_mistakes_are_one_line_before_a_picture_is_read(enlarge, unread, flags, told):
    assert enlarge(*flags).user_error() == told
    assert files(".") == ["a.png"]


@pytest.mark.parametrize(
    ("given", "scale"),
    [
        ({}, 2),
        ({"scale": 3}, 3),
        ({"scale": 4, "outscale": 1.5}, 4),
        ({"weights": "small_x4"}, 4),
        ({"outscale": 2.5}, 3),
        ({"longest": 90}, 3),
        ({"width": 90, "height": 91}, 4),
    ],
    ids=str,
)
def test_python(three_models, seed, given, scale):
    array = photograph(24, 30, seed)
    weights = three_models[scale]
    size = {key: value for key, value in given.items() if key not in ("scale", "weights")}
    expected = rdn_fast.upscale(array, weights, fp32=True, **size)
    np.testing.assert_array_equal(rdn_fast.upscale(array, fp32=True, **given), expected)
    if not size:
        whole = Upscaler(load_model(weights, "cpu"), fp32=True)(np.pad(array, ((4, 4), (4, 4), (0, 0)), "reflect"))
        np.testing.assert_array_equal(expected, whole[4 * scale : -4 * scale, 4 * scale : -4 * scale])


def test_mistakes_in_python():
    array = photograph(8, 8)
    for told, given in {
        r"^scale 8: no model .* weights for x8 \(outscale takes any factor\)$": {"scale": 8},
        "^scale 2: these weights are for x3; give scale 3 or none": {"weights": "small_x3", "scale": 2},
        "small_x8: no such file$": {"weights": "small_x8"},
    }.items():
        with pytest.raises(UserError, match=told):
            rdn_fast.upscale(array, **given)


def test_a_name_is_loaded_once(monkeypatch):
    loaded, load_any_model = [], upscale.load_any_model
    monkeypatch.setattr(
        upscale, "load_any_model", lambda path, device: loaded.append(path) or load_any_model(path, device)
    )
    upscale.loaded_upscalers.clear()
    for given in ({"scale": 3}, {"weights": "small_x3"}, {"outscale": 3}):
        rdn_fast.upscale(photograph(8, 8), fp32=True, **given)
    assert len(loaded) == 1
