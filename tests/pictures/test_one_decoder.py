"""Upscale, prepare, train and eval read the same pixels of every file, or refuse it alike with the reason."""

import contextlib
import io
import itertools
import re
from collections import Counter

import numpy as np
import pytest
import tifffile
from by_hand import ALPHA, DEEP, GREY, GREY16, RGB, RGB16, png16, png_of_grey, tiff_of_grey
from PIL import Image
from PIL.ExifTags import Base

import rdn_fast
from rdn_fast.data.images import read_image
from rdn_fast.errors import UserError
from rdn_fast.pictures.picture import read_picture

READERS = pytest.mark.parametrize("reader", [read_picture, read_image], ids=["upscale", "the others"])
RAMP = [list(range(0, 4096, 13)), list(range(0, 4096, 13))]


def in_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Pixels of upscale as prepare takes them: rounded, without alpha, three channels."""
    colours = pixels[..., :-1] if pixels.shape[2] in (2, 4) else pixels
    scaled = np.rint(colours / 257).astype(np.uint8) if pixels.dtype == np.uint16 else colours
    return np.broadcast_to(scaled, (*scaled.shape[:2], 3))


def same(path) -> np.ndarray:
    """Check that both readers agree; the pixels."""
    pixels = read_picture(path).pixels
    np.testing.assert_array_equal(read_image(path), in_8_bits(pixels))
    return pixels


@READERS
def test_no_flipped_bit_in_a_png_goes_unseen(saved, photograph, reader):
    path = saved("a.png", photograph(64, 48))
    content, rng = path.read_bytes(), np.random.default_rng(0)
    start = content.index(b"IDAT") + 4
    size = int.from_bytes(content[start - 8 : start - 4], "big")
    for bit in rng.integers(8 * start, 8 * (start + size), 50):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"^.{5,}$"):
            reader(path)
        with pytest.raises(ValueError, match=r"^.{5,}$"), Image.open(path) as image:
            read_picture(image)


def test_a_flipped_bit_is_an_error_of_the_function_too(saved, photograph, weights):
    path = saved("a.png", photograph(64, 48))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png: "):
        rdn_fast.upscale(path, weights, device="cpu")


@pytest.mark.parametrize("planes", [1, 2])
def test_white_of_12_bits_is_white(tmp_path, planes):
    (tmp_path / "a.tif").write_bytes(tiff_of_grey(RAMP, 12, planes=planes))
    pixels = same(tmp_path / "a.tif")
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels[..., 0], np.rint(np.array(RAMP) * 65535 / 4095))
    assert (pixels[0, 0, 0], pixels[0, -1, 0]) == (0, 65535)
    assert read_image(tmp_path / "a.tif").max() == 255


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_that_is_zero(tmp_path, dtype):
    grey = GREY if dtype == np.uint8 else GREY16
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="miniswhite", metadata=None)
    np.testing.assert_array_equal(same(tmp_path / "a.tif")[..., 0], np.iinfo(dtype).max - grey)


@pytest.mark.parametrize("pixels", DEEP.values(), ids=DEEP)
def test_16_bits_are_rounded_alike(tmp_path, pixels):
    (tmp_path / "a.png").write_bytes(png16(pixels))
    np.testing.assert_array_equal(same(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_orientation_is_applied_alike(saved, name, orientation):
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    assert same(saved(name, RGB, exif=exif)).shape[:2] == ((11, 7) if orientation < 5 else (7, 11))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RGB),
        Image.fromarray(np.dstack([RGB, ALPHA])),
        Image.fromarray(np.dstack([GREY, ALPHA])),
        Image.fromarray(GREY > 99),
        Image.fromarray(RGB).convert("P"),
        Image.frombytes("CMYK", (7, 11), np.dstack([RGB, ALPHA]).tobytes()),
    ],
    ids=lambda image: image.mode,
)
def test_8_bits_are_read_alike(tmp_path, image):
    for format in ("PNG", "TIFF", "GIF", "JPEG", "WEBP", "BMP", "ICO", "TGA", "PPM"):
        path = tmp_path / f"a.{format.lower()}"
        try:
            image.save(path, format)
        except (OSError, ValueError):  # a mode that the format does not hold
            continue
        same(path)


def test_every_kind_that_pillow_writes_is_read_or_refused_alike(tmp_path):
    Image.init()
    colours, alike = Image.fromarray(np.dstack([RGB, ALPHA])), Counter()
    images = [colours.convert("RGB").convert(mode) for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV")]
    images += [colours, colours.convert("LA"), colours.convert("PA"), colours.convert("RGBX"), colours.convert("RGBa")]
    images += [Image.fromarray(GREY16), Image.fromarray(GREY16.astype(np.int32)), Image.fromarray(GREY / np.float32(2))]
    for format, (image, number) in itertools.product(sorted(Image.SAVE), zip(images, itertools.count())):
        path = tmp_path / f"{format} {number} {image.mode.replace(';', '')}"
        with contextlib.suppress(Exception):  # a mode that the format does not hold
            image.save(path, format)
            if path.stat().st_size:
                alike[outcome(path)] += 1
    assert alike["read"] > 90, alike
    assert alike["refused"] < alike["read"] / 2, alike  # EPS, PDF, floats


def outcome(path) -> str:
    """Check that the readers agree on the pixels, or on the reason for refusing the file."""
    reasons = []
    for reader in (read_picture, read_image):
        try:
            reader(path)
        except ValueError as error:
            reasons.append(str(error))
    if not reasons:
        same(path)
        return "read"
    assert reasons == [reasons[0]] * 2, path
    return "refused"


# ---- what has no defined range, or is not read right ----


def planar16() -> bytes:
    file = io.BytesIO()
    planes = np.ascontiguousarray(RGB16.transpose(2, 0, 1))
    tifffile.imwrite(file, planes, photometric="rgb", planarconfig="separate", metadata=None)
    return file.getvalue()


def tiff(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, photometric="minisblack", metadata=None)
    return file.getvalue()


REFUSED = {
    "16-bit planes": (planar16(), "channels lie apart"),
    "uint32": (tiff(np.arange(77, dtype=np.uint32).reshape(11, 7) * 50_000_000), "no defined range"),
    "int32": (tiff(GREY16.astype(np.int32) - 40_000), "no defined range"),
    "int16": (tiff(GREY16.astype(np.int16)), "no defined range"),
    "int16 that is not negative": (tiff((GREY16 // 2).astype(np.int16)), "signed pixels have no defined range"),
    "int8": (tiff(GREY.astype(np.int8)), "signed pixels have no defined range"),
    "float": (tiff(np.zeros((3, 4), np.float32)), "no defined range"),
    "10 bits": (tiff_of_grey([[0, 1023]], 10), r"a TIFF that Pillow does not read: BitsPerSample \(10,\), "),
    "14 bits": (tiff_of_grey([[0, 16383]], 14), r"a TIFF that Pillow does not read: BitsPerSample \(14,\), "),
}


@READERS
@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_defined_range_is_refused(tmp_path, kind, reader):
    content, reason = REFUSED[kind]
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        reader(tmp_path / "a.tif")


def test_prepare_and_eval_name_what_has_no_defined_range(cli, tmp_path, saved):
    (tmp_path / "set").mkdir()
    for name in ("set/a.png", "set/z.png"):
        saved(name, np.zeros((32, 32, 3), np.uint8))
    for kind, (content, _) in REFUSED.items():
        (tmp_path / "set" / f"{kind}.tif").write_bytes(content)
    ended = cli("prepare", "--images-dir", tmp_path / "set", "--output-path", tmp_path / "a.h5", "--eval")
    assert ended.code == 0
    assert f"2 images at x2, {len(REFUSED)} files skipped" in ended.out
    for kind, (_, reason) in REFUSED.items():
        (line,) = [line for line in ended.out.splitlines() if f"set/{kind}.tif: " in line]
        assert re.search(reason, line)


# ---- transparent colours ----


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_transparent_grey_of_few_bits(tmp_path, bits):
    values = list(range(0, 2**bits, max(1, 2**bits // 16)))
    for key in {0, 1, values[-1]}:
        content = png_of_grey([values], bits, (b"tRNS", key.to_bytes(2, "big")))
        (tmp_path / "a.png").write_bytes(content)
        expected = [[value * 255 // (2**bits - 1), 0 if value == key else 255] for value in values]
        np.testing.assert_array_equal(same(tmp_path / "a.png")[0], expected)
        with Image.open(io.BytesIO(content)) as image:
            np.testing.assert_array_equal(read_picture(image).pixels[0], expected)
