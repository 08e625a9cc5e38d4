"""rdn_fast.upscale: pictures, arrays and weights that it takes, and what it computes."""

import io
import os
import threading
import warnings

import numpy as np
import pytest
import torch
from by_hand import RGB16, png16
from PIL import Image
from runs import photograph
from stand_in import PATIENCE, Nearest

import rdn_fast
from rdn_fast.errors import UserError
from rdn_fast.pictures import upscale
from rdn_fast.pictures.tiled import Upscaler

pytestmark = pytest.mark.usefixtures("untimed")


@pytest.fixture
def nearest(monkeypatch):
    monkeypatch.setattr(upscale, "Upscaler", Nearest)
    upscale.loaded_upscalers.clear()
    yield
    upscale.loaded_upscalers.clear()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("1", "L"),
        ("L", "L"),
        ("LA", "LA"),
        ("P", "RGB"),
        ("RGB", "RGB"),
        ("RGBA", "RGBA"),
        ("CMYK", "RGB"),
        ("YCbCr", "RGB"),
        ("I;16", "I;16"),
        ("HSV", "RGB"),
    ],
)
def test_modes(nearest, weights, mode, expected):
    image = Image.new(mode, (6, 5))
    result = rdn_fast.upscale(image, weights)
    assert (result.mode, result.size) == (expected, (12, 10))
    assert (image.mode, image.size) == (mode, (6, 5))


def test_file_image_and_array_are_the_same(nearest, weights, tmp_path):
    array = photograph(5, 6)
    Image.fromarray(array).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(array), array):
        np.testing.assert_array_equal(
            np.asarray(rdn_fast.upscale(source, str(weights))), array.repeat(2, 0).repeat(2, 1)
        )


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 4)])
def test_arrays_of_grey_and_alpha(nearest, weights, shape):
    array = np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(rdn_fast.upscale(array, weights)), array.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4, 5, 6), np.uint8),
        np.zeros((4, 5, 3)),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((4, 5), np.float32),
    ],
    ids=str,
)
def test_arrays_that_are_no_pictures(nearest, weights, array):
    with pytest.raises(UserError, match=r"^the picture: "):
        rdn_fast.upscale(array, weights)


def test_what_is_computed_is_the_model(model, weights):
    array = photograph(9, 13)
    expected = Upscaler(model, fp32=True)(np.pad(array, ((4, 4), (4, 4), (0, 0)), "reflect"))[8:-8, 8:-8]
    for given in (model, weights):
        np.testing.assert_array_equal(np.asarray(rdn_fast.upscale(array, given, fp32=True)), expected)
    assert not np.array_equal(np.asarray(rdn_fast.upscale(array, weights, fp32=True, self_ensemble=True)), expected)


def test_weights_are_loaded_once_and_again_when_written_anew(nearest, weights, tmp_path, monkeypatch):
    loaded, load_any_model = [], upscale.load_any_model
    monkeypatch.setattr(
        upscale, "load_any_model", lambda path, device: loaded.append(path) or load_any_model(path, device)
    )
    path = tmp_path / "w.pth"
    path.write_bytes(weights.read_bytes())
    array = photograph(4, 4)
    for _ in range(3):
        rdn_fast.upscale(array, path)
    assert len(loaded) == 1
    os.utime(path, (1, 1))
    rdn_fast.upscale(array, path)
    assert len(loaded) == 2


def test_mistakes_in_python(model, weights, tmp_path):
    array = photograph(4, 4)
    (tmp_path / "a.png").write_bytes(b"x")
    for words, call in {
        "scale 3: these weights are for x2": lambda: rdn_fast.upscale(array, weights, scale=3),
        "scale 4: these weights are for x2": lambda: rdn_fast.upscale(array, model, scale=4),
        "device cpu: an RDN computes where it is": lambda: rdn_fast.upscale(array, model, device="cpu"),
        "nowhere.pth": lambda: rdn_fast.upscale(array, tmp_path / "nowhere.pth"),
        "a.png: not a picture": lambda: rdn_fast.upscale(tmp_path / "a.png", weights),
        "b.png: no such file": lambda: rdn_fast.upscale(tmp_path / "b.png", weights),
        "tile -1": lambda: rdn_fast.upscale(array, weights, tile=-1),
        r"tile \[3\]": lambda: rdn_fast.upscale(array, weights, tile=[3]),
        "the picture: give a path, .*; this is of type Tensor$": lambda: rdn_fast.upscale(torch.zeros(4, 4, 3)),
        "; this is of type NoneType$": lambda: rdn_fast.upscale(None),
        "; this is of type BytesIO$": lambda: rdn_fast.upscale(io.BytesIO()),
        "^weights: .*; this is of type dict$": lambda: rdn_fast.upscale(array, {}),
        "^weights: .*; this is of type OrderedDict$": lambda: rdn_fast.load_model(model.state_dict()),
        "device None: choose auto": lambda: rdn_fast.upscale(array, weights, device=None),
        "device 0: choose auto": lambda: rdn_fast.load_model(weights, device=0),
    }.items():
        with pytest.raises(UserError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_several_threads(model):
    """The model's tiles are not for several threads at a time; the function is."""
    arrays = [photograph(8, 8, seed=i) for i in range(4)]
    results = {}
    threads = [
        threading.Thread(
            target=lambda i=i: results.update({i: np.asarray(rdn_fast.upscale(arrays[i], model, fp32=True))})
        )
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for i, array in enumerate(arrays):
        continued = np.pad(array, ((4, 4), (4, 4), (0, 0)), "reflect")
        np.testing.assert_array_equal(results[i], Upscaler(model, fp32=True)(continued)[8:-8, 8:-8])


# ---- notes and mistakes ----


def test_notes_are_warnings(nearest, weights, tmp_path):
    frames = [Image.new("L", (6, 5), i) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (6, 5)).save(tmp_path / "b.png", exif=b"Exif\0\0garbage")
    (tmp_path / "c.png").write_bytes(png16(RGB16, "0"))
    for name, words in {
        "a.gif": "the first of its 3 pictures",
        "b.png": "its EXIF data is damaged and left out",
        "c.png": "16 bits reduced to the 8 that a PIL.Image holds",
    }.items():
        with pytest.warns(UserWarning, match=words) as said:
            rdn_fast.upscale(tmp_path / name, weights, outscale=2.5)
        assert [str(warning.message) for warning in said] == [f"{tmp_path / name}: {words}"]
        assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rdn_fast.upscale(Image.new("RGB", (6, 5)), weights)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 5, 3)), r"; this array is float64 \[4, 5, 3\]; floats in 0..1: \(255 \* x\)"),
        (np.zeros((4, 5), np.float32), r"; this array is float32 \[4, 5\]; floats in 0..1"),
        (np.zeros((3, 4, 5), np.uint8), r"; this array is uint8 \[3, 4, 5\]$"),
        (np.zeros((4, 5, 3), np.uint16), r"; this array is uint16 \[4, 5, 3\]$"),
        (np.zeros((4, 5), np.int64), r"; this array is int64 \[4, 5\]$"),
        (np.zeros(4, np.uint8), r"; this array is uint8 \[4\]$"),
    ],
)
def test_arrays_of_other_kinds_are_named(nearest, weights, array, words):
    kinds = r"^the picture: give uint8 \[H, W\], \[H, W, 3\] or \[H, W, 4\], or uint16 \[H, W\], not empty"
    with pytest.raises(UserError, match=kinds + words):
        rdn_fast.upscale(array, weights)


def test_integers_of_numpy_are_numbers_of_pixels(model):
    array = photograph(40, 30)
    given = rdn_fast.upscale(array, model, tile=np.int64(16), tile_pad=np.int32(9), fp32=True)
    np.testing.assert_array_equal(np.asarray(given), np.asarray(rdn_fast.upscale(array, model, tile=16, tile_pad=9)))
    for tile in (16.0, "16", np.float64(16)):
        with pytest.raises(UserError, match=r"^tile 16(\.0)?: give an edge in LR pixels"):
            rdn_fast.upscale(array, model, tile=tile)
