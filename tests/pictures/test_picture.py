"""Pictures of 8 bits of every kind, as real files, through a stand-in for the model that repeats pixels."""

import io

import numpy as np
import pytest
import tifffile
from by_hand import ALPHA, GREY, RGB, RNG, SRGB, large, opened, repeated
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.ExifTags import Base

from rdn_fast.pictures.encode import encode, fit, to_image
from rdn_fast.pictures.enlarge import enlarge
from rdn_fast.pictures.formats import FORMATS, why_not_written
from rdn_fast.pictures.picture import Picture, read_picture

LOSSLESS = pytest.mark.parametrize("suffix", [".png", ".tif"])


@LOSSLESS
@pytest.mark.parametrize(
    ("mode", "source"),
    [("RGB", RGB), ("RGBA", np.dstack([RGB, ALPHA])), ("L", GREY), ("LA", np.dstack([GREY, ALPHA]))],
    ids=["RGB", "RGBA", "L", "LA"],
)
def test_8_bits(saved, made, suffix, mode, source):
    target, notes = made(saved(f"a{suffix}", source))
    got, pixels = opened(target)
    assert got == mode
    np.testing.assert_array_equal(pixels, large(source))
    assert notes == []


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_1_bit_becomes_grey(saved, made, name):
    target, _ = made(saved(name, GREY > 99), ".png")
    mode, pixels = opened(target)
    assert mode == "L"
    np.testing.assert_array_equal(pixels, large(np.where(GREY > 99, 255, 0)))


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.tif", "a.bmp"])
def test_palette_becomes_colours(saved, made, name):
    colours, index = RNG.integers(0, 256, (7, 3), dtype=np.uint8), RNG.integers(0, 7, (11, 7), dtype=np.uint8)
    image = Image.frombytes("P", (7, 11), index.tobytes())
    image.putpalette(colours.tobytes())
    mode, pixels = opened(made(saved(name, image), ".png")[0])
    assert mode == "RGB"
    np.testing.assert_array_equal(pixels, large(colours[index]))


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_palette_with_a_transparent_colour_becomes_colours_and_alpha(saved, made, name):
    colours, index = RNG.integers(0, 256, (7, 3), dtype=np.uint8), RNG.integers(0, 7, (11, 7), dtype=np.uint8)
    image = Image.frombytes("P", (7, 11), index.tobytes())
    image.putpalette(colours.tobytes())
    mode, pixels = opened(made(saved(name, image, transparency=3), ".png")[0])
    assert mode == "RGBA"
    np.testing.assert_array_equal(pixels[..., 3], large(np.where(index == 3, 0, 255)))
    np.testing.assert_array_equal(pixels[pixels[..., 3] > 0][:, :3], large(colours[index])[pixels[..., 3] > 0])


def test_palette_with_graded_transparency(saved, made):
    colours, index, alphas = (
        RNG.integers(0, 256, (7, 3), dtype=np.uint8),
        RNG.integers(0, 7, (11, 7), dtype=np.uint8),
        bytes(range(30, 240, 30)),
    )
    image = Image.frombytes("P", (7, 11), index.tobytes())
    image.putpalette(colours.tobytes())
    _, pixels = opened(made(saved("a.png", image, transparency=alphas))[0])
    np.testing.assert_array_equal(pixels, large(np.dstack([colours[index], np.frombuffer(alphas, np.uint8)[index]])))


@pytest.mark.parametrize(("source", "mode"), [(RGB, "RGBA"), (GREY, "LA")], ids=["RGB", "grey"])
def test_transparent_colour_becomes_alpha(saved, made, source, mode):
    key = tuple(map(int, source[2, 3])) if source.ndim == 3 else int(source[2, 3])
    got, pixels = opened(made(saved("a.png", source, transparency=key))[0])
    transparent = (source == source[2, 3]).reshape(11, 7, -1).all(axis=2)
    assert got == mode
    np.testing.assert_array_equal(pixels[..., -1], large(np.where(transparent, 0, 255)))


def test_premultiplied_tiff_is_divided(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.full((4, 5, 4), [50, 20, 0, 100], np.uint8),
        photometric="rgb",
        extrasamples=["assocalpha"],
        metadata=None,
    )
    pixels = read_picture(tmp_path / "a.tif").pixels
    assert pixels.shape == (4, 5, 4)
    assert np.abs(pixels[0, 0].astype(int) - [127, 51, 0, 100]).max() <= 1


def test_cmyk_without_a_profile(saved, made):
    ink = RNG.integers(0, 256, (11, 7, 4), dtype=np.uint8)
    mode, pixels = opened(made(saved("a.tif", Image.frombytes("CMYK", (7, 11), ink.tobytes())))[0])
    paper, black = 255 - ink[..., :3].astype(int), 255 - ink[..., 3:].astype(int)
    assert mode == "RGB"
    assert np.abs(pixels - large(paper * black / 255)).max() <= 1


def test_cmyk_goes_through_its_profile(saved, made, monkeypatch):
    # No CMYK profile comes with Pillow: what littlecms is asked is looked at.
    asked = []

    def convert(image, profile, output, outputMode):
        asked.append((image.mode, profile.read(), outputMode))
        return Image.new("RGB", image.size, (1, 2, 3))

    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    source = saved("a.jpg", Image.new("CMYK", (7, 11), (10, 200, 30, 40)), icc_profile=b"inks")
    target, _ = made(source, ".png")
    assert asked == [("CMYK", b"inks", "RGB")]
    with Image.open(target) as image:
        assert image.getpixel((0, 0)) == (1, 2, 3)
        assert "icc_profile" not in image.info  # the result's colours are sRGB, not inks


@pytest.mark.parametrize("profile", [b"damaged", SRGB], ids=["damaged", "not for CMYK"])
def test_cmyk_with_a_useless_profile(saved, made, profile):
    image = Image.new("CMYK", (7, 11), (255, 0, 0, 0))
    target, _ = made(saved("a.tif", image, icc_profile=profile))
    with Image.open(target) as result:
        assert result.getpixel((0, 0)) == (0, 255, 255)
        assert "icc_profile" not in result.info


def test_rgb_through_jpeg_and_webp_stays_close(saved, made, photograph):
    source = photograph(40, 48)
    for suffix in (".jpg", ".webp"):
        mode, pixels = opened(made(saved("a.png", source), suffix)[0])
        assert mode == "RGB"
        assert 10 * np.log10(255**2 / np.mean((pixels.astype(float) - large(source)) ** 2)) > 30, suffix


def test_jpeg_is_written_without_chroma_subsampling(saved, made, photograph):
    target, _ = made(saved("a.jpg", photograph(40, 48)))
    with Image.open(target) as image:
        assert {layer[1:3] for layer in image.layer} == {(1, 1)}
        reference = io.BytesIO()
        image.save(reference, "JPEG", quality=95, subsampling=0)
        assert image.quantization == Image.open(reference).quantization


def test_grey_jpeg_stays_grey(saved, made):
    mode, pixels = opened(made(saved("a.jpg", np.full((11, 7), 77, np.uint8)))[0])
    assert mode == "L"
    assert np.abs(pixels.astype(int) - 77).max() <= 1


def test_alpha_in_webp(saved, made):
    mode, pixels = opened(made(saved("a.png", np.dstack([RGB, ALPHA])), ".webp")[0])
    assert mode == "RGBA"
    np.testing.assert_array_equal(pixels[..., 3], large(ALPHA))


@pytest.mark.parametrize(("colour", "mode"), [((0, 100, 200), "RGB"), ((60,), "L")], ids=["RGBA", "LA"])
def test_alpha_into_jpeg_is_replaced_by_white(saved, made, colour, mode):
    source = np.empty((16, 16, len(colour) + 1), np.uint8)
    source[...] = *colour, 0
    source[8:, :, -1] = 51
    target, (note,) = made(saved("a.png", source), ".jpg")
    assert "white" in note
    got, pixels = opened(target)
    assert got == mode
    expected = np.squeeze(255 + (np.array(colour) - 255) * 0.2)
    assert np.abs(pixels[:8].astype(int) - 255).max() <= 2
    assert np.abs(pixels[-8:] - expected).max() <= 3


def test_constant_alpha_costs_nothing_and_stays(saved, made):
    asked = []

    def model(image):
        asked.append(image)
        return repeated(image)

    _, pixels = opened(made(saved("a.png", np.dstack([RGB, np.full((11, 7), 9, np.uint8)])), model=model)[0])
    assert len(asked) == 1
    np.testing.assert_array_equal(asked[0], np.pad(RGB, ((4, 4), (4, 4), (0, 0)), "reflect"))
    assert set(pixels[..., 3].flat) == {9}


def test_grey_is_the_mean_of_the_models_colours(saved):
    def coloured(image):  # 10 more red, 5 less blue
        return np.add(repeated(image), [10, 0, -5]).astype(np.uint8)

    picture = enlarge(read_picture(saved("a.png", np.full((3, 4), 100, np.uint8))), coloured)
    assert picture.pixels.shape == (6, 8, 1)
    assert set(picture.pixels.flat) == {102}  # 101.67


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if not why_not_written(FORMATS[suffix])])
def test_thin_pictures(saved, made, size, suffix):
    with Image.open(made(saved("a.png", Image.new("RGB", size, (9, 99, 200))), suffix)[0]) as image:
        assert image.size == (2 * size[0], 2 * size[1])
        assert np.abs(np.array(image.convert("RGB").getpixel((0, 0))) - [9, 99, 200]).max() <= 6


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_pixels_in_any_lossless_kind(data):
    channels, dtype, format = (
        data.draw(st.sampled_from(kinds)) for kinds in ((1, 2, 3, 4), (np.uint8, np.uint16), ("PNG", "TIFF"))
    )
    shape = *(data.draw(st.integers(1, 70)) for _ in range(2)), channels
    pixels = np.random.default_rng(data.draw(st.integers(0, 2**32))).integers(
        0, np.iinfo(dtype).max, shape, dtype, endpoint=True
    )
    picture = Picture(pixels, Image.Exif(), None, None)
    content = encode(fit(picture, picture.size, format), format)
    path = io.BytesIO(content)
    with Image.open(path) as image:
        assert image.size == shape[1::-1]
    if dtype == np.uint8:
        np.testing.assert_array_equal(np.asarray(Image.open(path)).reshape(shape), pixels)


# ---- PIL images ----


def test_to_image_carries_what_is_known(saved):
    exif = Image.Exif()
    exif[Base.Make] = "Camera"
    image = to_image(read_picture(saved("a.png", RGB, exif=exif, icc_profile=SRGB, dpi=(300, 300))))
    assert image.info["icc_profile"] == SRGB
    assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert image.getexif()[Base.Make] == "Camera"
    np.testing.assert_array_equal(np.asarray(image), RGB)


def test_an_image_is_left_as_it_is():
    image = Image.fromarray(RGB)
    image.getexif()[Base.Orientation] = 6
    assert read_picture(image).pixels.shape == (7, 11, 3)
    assert image.size == (7, 11)
    assert image.getexif()[Base.Orientation] == 6
