"""Pictures at any size, against the plainest way: the model as often as needed, then Pillow's resample."""

import numpy as np
import pytest
from by_hand import SRGB, repeated
from PIL import Image
from PIL.ExifTags import IFD, Base
from runs import photograph
from stand_in import Nearest, files
from tiny_models import model

import rdn_fast
from rdn_fast.pictures import upscale_files
from rdn_fast.pictures.enlarge import enlarge
from rdn_fast.pictures.picture import Picture
from rdn_fast.pictures.resize import resize
from rdn_fast.pictures.sizes import OutputSize
from rdn_fast.pictures.tiled import Upscaler

pytestmark = pytest.mark.usefixtures("untimed")
LANCZOS = Image.Resampling.LANCZOS


def picture(pixels: np.ndarray) -> Picture:
    return Picture(pixels, Image.Exif(), None, None)


def resized(pixels: np.ndarray, upscaler=repeated, scale=2, **wanted) -> np.ndarray:
    made = resize(picture(pixels), OutputSize(**wanted).steps(*pixels.shape[1::-1], scale), upscaler).pixels
    assert made.dtype == pixels.dtype
    return made


def times(upscaler, number: int, pixels: np.ndarray) -> np.ndarray:
    for _ in range(number):
        pixels = enlarge(picture(pixels), upscaler).pixels
    return pixels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("scale", "wanted", "passes", "size"),
    [
        (2, {"outscale": 3.5}, 2, (60, 74)),
        (2, {"outscale": 4}, 2, (68, 84)),
        (3, {"outscale": 3.5}, 2, (60, 74)),
        (4, {"outscale": 3.5}, 1, (60, 74)),
        (2, {"width": 41}, 2, (41, 51)),
        (2, {"height": 40}, 1, (32, 40)),
        (2, {"longest": 13}, 0, (11, 13)),
        (2, {"width": 20, "height": 100}, 3, (20, 100)),
    ],
)
def test_is_the_model_and_then_pillows_resample(scale, wanted, passes, size, channels):
    pixels = np.ascontiguousarray(photograph(21, 17)[..., :channels])
    upscaler = Upscaler(model(scale), fp32=True)
    large = times(upscaler, passes, pixels)
    expected = np.asarray(Image.fromarray(large.squeeze()).resize(size, LANCZOS)).reshape(size[1], size[0], channels)
    np.testing.assert_array_equal(resized(pixels, upscaler, scale, **wanted), expected)


def test_16_bits_are_resampled_with_all_of_them():
    rng = np.random.default_rng(0)
    pixels = (1000 * rng.integers(0, 66, (12, 9, 3))).astype(np.uint16)
    made = resized(pixels, outscale=3.5)
    large = times(repeated, 2, pixels)
    for channel in range(3):
        plane = Image.fromarray(large[..., channel].astype(np.float32)).resize((32, 42), LANCZOS)
        np.testing.assert_array_equal(made[..., channel], np.rint(np.clip(np.asarray(plane), 0, 65535)))
    assert len(np.unique(made % 1000)) > 500
    deep = 257 * rng.integers(100, 150, (12, 9, 3), dtype=np.uint16)  # 8 bits are clipped between rows and columns
    assert np.abs(resized(deep, outscale=3.5) / 257 - resized((deep // 257).astype(np.uint8), outscale=3.5)).max() < 2


@pytest.mark.parametrize("wanted", [{"outscale": 0.5}, {"outscale": 3.5}, {"outscale": 1.5}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_invisible_pixels_bleed_no_colour(wanted, dtype):
    white = np.iinfo(dtype).max
    y, x = np.mgrid[:40, :40] - 19.5
    inside = np.hypot(y, x) < 12
    pixels = np.where(inside[..., None], [200, 30, 40, white], [0, 255, 255, 0]).astype(dtype)
    made = resized(pixels, **wanted)
    shown = made[made[..., 3] > 0][:, :3].astype(int)
    assert np.abs(shown - [200, 30, 40]).max() <= 1
    factor = wanted["outscale"]
    y, x = np.mgrid[: made.shape[0], : made.shape[1]] - (made.shape[0] - 1) / 2
    reach = 4 * max(1, factor)  # of the filter, in pixels of the result
    assert set(made[np.hypot(y, x) < 12 * factor - reach][:, 3]) == {white}
    assert set(made[np.hypot(y, x) > 12 * factor + reach][:, 3]) == {0}


def test_constant_alpha_and_grey_stay():
    pixels = np.dstack([photograph(9, 12), np.full((9, 12), 77, np.uint8)])
    assert set(resized(pixels, outscale=3.5)[..., 3].flat) == {77}
    grey = np.repeat(photograph(9, 12)[..., :1], 3, axis=2)
    made = resized(grey, Upscaler(model(2), fp32=True), outscale=3.5)
    assert (made == made[..., :1]).all()


def test_tiles_stay_tiles_in_the_second_pass():
    made, shapes = model(2), []
    made.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    pixels = photograph(40, 50)
    in_tiles = resized(pixels, Upscaler(made, tile=16, tile_pad="exact", fp32=True), outscale=3.5)
    assert max(max(shape[2:]) for shape in shapes) <= 16 + 2 * 9
    whole = resized(pixels, Upscaler(made, tile=0, fp32=True), outscale=3.5)
    assert np.abs(in_tiles.astype(int) - whole).max() <= 1


# ---- the command ----


@pytest.mark.parametrize(
    ("flags", "size", "line"),
    [
        (("--outscale", 3.5), (21, 18), "in/a.png: 21x18 pixels (x3.5): through the x2 model twice, then resampled"),
        (("--width", 24), (24, 20), "in/a.png: 24x20 pixels (x4): through the x2 model twice"),
        (("--height", 10), (12, 10), None),
        (("--longest=3",), (3, 2), "in/a.png: 3x2 pixels (x0.5): resampled without the model"),
        (("--outscale", 1), (6, 5), "in/a.png: 6x5 pixels (x1): its own size, not through the model"),
        (("--outscale", 2, "-s", 2), (12, 10), None),
        (
            ("--width", 9, "--height", 9),
            (9, 9),
            "in/a.png: 9x9 pixels (stretched x1.5 by x1.8): through the x2 model once, then resampled",
        ),
    ],
)
def test_command_makes_the_size_and_says_how(run, tree, flags, size, line):
    tree("in/a.png")
    ended = run("-i", "in", "-o", "out", *flags)
    assert ended.code == 0, ended
    with Image.open("out/a_out.png") as image:
        assert image.size == size
    said = [found for found in ended.out.splitlines() if found.startswith("in/")]
    assert said == ([line] if line else [])


def test_metadata_say_the_new_size(run, tmp_path):
    exif = Image.Exif()
    exif.get_ifd(IFD.Exif).update({Base.ExifImageWidth: 7, Base.ExifImageHeight: 11})
    exif[IFD.Exif] = exif.get_ifd(IFD.Exif)
    exif[Base.Orientation], exif[Base.Artist] = 6, "me"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:ImageWidth="7"/></x:xmpmeta>'
    Image.new("RGB", (7, 12)).save(tmp_path / "a.jpg", exif=exif, xmp=xmp, icc_profile=SRGB, dpi=(300, 300))
    assert run("-i", "a.jpg", "-o", "out", "--width", 30).code == 0
    with Image.open("out/a_out.jpg") as image:
        assert image.size == (30, 18)  # turned
        kept = image.getexif()
        inner = kept.get_ifd(IFD.Exif)
        assert (inner[Base.ExifImageWidth], inner[Base.ExifImageHeight]) == (30, 18)
        assert kept[Base.Artist] == "me"
        assert Base.Orientation not in kept
        assert image.info["dpi"] == (300, 300)
        assert image.info["icc_profile"] == SRGB
        assert b'ImageWidth="30"' in image.info["xmp"]


def test_palettes_animations_and_16_bits_at_another_size(run, tmp_path):
    frames = [Image.new("P", (6, 5), i) for i in range(2)]
    frames[0].putpalette([10, 20, 30, 40, 50, 60])
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((5, 6), 40_000, np.uint16)).save(tmp_path / "b.png")
    ended = run("-i", "a.gif", "b.png", "-o", "out", "--outscale", 2.5)
    assert ended.code == 0
    lines = [line for line in ended.out.splitlines() if line.startswith("a.gif: ")]
    assert lines == [
        "a.gif: 15x12 pixels (x2.5): through the x2 model twice, then resampled",
        "a.gif: the first of its 2 pictures",
    ]
    with Image.open("out/a_out.png") as image:
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (15, 12), (10, 20, 30))
    with Image.open("out/b_out.png") as image:
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("I;16", (15, 12), 40_000)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--outscale", 0), "--outscale 0.0: give a factor above 0"),
        (("--outscale", "big"), "argument --outscale: invalid float value: 'big'"),
        (("--width", -1), "--width -1: give a number of pixels, 1 or more"),
        (("--width", 10, "--longest", 3), "--width and --longest each say the result's size; give one of them"),
        (("--outscale", 2, "--height", 3), "--outscale and --height each say the result's size; give one of them"),
        (("-s", 3), "--scale 3: these weights are for x2; give --scale 2 or none, or other weights (--outscale "),
    ],
)
def test_mistakes_are_one_line_before_any_work(run, tree, unread, flags, words):
    tree("a.png")
    ended = run("-i", "a.png", "-o", "out", *flags)
    assert ended.user_error().startswith(words)
    assert files(".") == ["a.png"]


def test_results_too_large_are_refused_before_the_model_runs(run, tree, monkeypatch):
    monkeypatch.setattr(Nearest, "__call__", lambda *_: pytest.fail("the model ran"))
    tree("a.png")
    limited = run("-i", "a.png", "-o", "out", "--outscale", 16, "--max-pixels", 1000)
    assert limited.user_error() == (
        "a.png: 48x40 pixels before pass 4 of the x2 model are more than --max-pixels 1000; give a smaller size"
    )
    limited = run("-i", "a.png", "-o", "out", "--width", 10**9)
    assert "are more than --max-pixels 178956970; give a smaller size" in limited.user_error()
    limited = run("-i", "a.png", "-o", "out", "--width", 70_000, "--ext", "jpg", "--max-pixels", 0)
    assert "70000x58333 pixels of the result are more than JPEG files hold" in limited.user_error()
    assert files("out") == []


def test_the_second_pass_has_its_share_of_the_progress(run, tmp_path, monkeypatch):
    class Telling(Nearest):
        def __call__(self, image):
            self.progress(1)
            return super().__call__(image)

    told = []
    monkeypatch.setattr(upscale_files, "Upscaler", Telling)
    monkeypatch.setattr(upscale_files.Bar, "set_done", lambda _, done, text: told.append((done, text)))
    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")
    alpha = Image.new("RGBA", (6, 5), (1, 2, 3, 4))
    alpha.putpixel((0, 0), (1, 2, 3, 255))
    alpha.save(tmp_path / "b.png")
    assert run("-i", "a.png", "b.png", "-o", "out", "--outscale", 3).code == 0
    assert told == [
        (0.2, "a.png 20%"),
        (1, "a.png"),
        (1.1, "b.png 10%"),
        (1.2, "b.png 20%"),
        (1.6, "b.png 60%"),
        (2, "b.png"),
    ]


def test_a_result_of_another_size_is_kept_without_overwrite(run, tree):
    tree("a.png")
    assert run("-i", "a.png", "-o", "out").code == 0
    assert "1 there already" in run("-i", "a.png", "-o", "out", "--outscale", 3).out
    assert Image.open("out/a_out.png").size == (12, 10)
    assert run("-i", "a.png", "-o", "out", "--outscale", 3, "--overwrite").code == 0
    assert Image.open("out/a_out.png").size == (18, 15)


# ---- from Python ----


def test_python_gives_the_size(tmp_path):
    array = photograph(17, 21)
    made = model(2)
    large = times(Upscaler(made, fp32=True), 2, array)
    expected = np.asarray(Image.fromarray(large).resize((74, 60), LANCZOS))
    np.testing.assert_array_equal(np.asarray(rdn_fast.upscale(array, made, fp32=True, outscale=3.5)), expected)
    for wanted, size in (
        ({"width": 30}, (30, 24)),
        ({"height": np.int64(10)}, (12, 10)),
        ({"longest": 8}, (8, 6)),
        ({"width": 5, "height": 50}, (5, 50)),
        ({"outscale": 1}, (21, 17)),
    ):
        assert rdn_fast.upscale(array, made, **wanted).size == size


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"outscale": -1}, "outscale -1: give a factor above 0"),
        ({"width": 3, "longest": 3}, "width and longest each say the result's size; give one of them"),
        ({"width": 10**9}, "the picture: .* are more than the limit of 178956970; give a smaller size"),
    ],
)
def test_mistakes_in_python(wanted, words):
    with pytest.raises(rdn_fast.errors.UserError, match=f"^{words}$"):
        rdn_fast.upscale(photograph(4, 4), model(2), **wanted)
