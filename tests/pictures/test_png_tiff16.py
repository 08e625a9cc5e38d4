"""Pictures of 16 bits: every bit of the file comes through, or a note says what does not."""

import io
import zlib

import numpy as np
import pytest
import tifffile
from by_hand import ALPHA, DEEP, GREY, GREY16, RGB, RGB16, RNG, large, opened, pixels_of_png16, png16
from PIL import Image
from PIL.ExifTags import Base

from rdn_fast.data.images import read_image
from rdn_fast.pictures.encode import fit
from rdn_fast.pictures.picture import Picture, read_picture

DEEP_KINDS = pytest.mark.parametrize("pixels", DEEP.values(), ids=DEEP)


@DEEP_KINDS
def test_16_bit_png_keeps_16_bits(tmp_path, made, pixels):
    source = tmp_path / "a.png"
    source.write_bytes(png16(pixels))
    target, notes = made(source)
    np.testing.assert_array_equal(pixels_of_png16(target.read_bytes()), large(pixels))
    assert notes == []


@DEEP_KINDS
def test_16_bit_png_becomes_a_16_bit_tiff(tmp_path, made, pixels):
    source = tmp_path / "a.png"
    source.write_bytes(png16(pixels))
    target, _ = made(source, ".tif")
    if pixels.shape[2] == 2:
        pixels = pixels[..., [0, 0, 0, 1]]  # Pillow opens no TIFF of 16 bits with grey and alpha
    with tifffile.TiffFile(target) as file:
        tags = {tag.name: tag.value for tag in file.pages[0].tags}
    assert (tags["ImageWidth"], tags["ImageLength"], tags["SamplesPerPixel"]) == (14, 22, pixels.shape[2])
    assert set(np.ravel(tags["BitsPerSample"])) == {16}
    assert ("ExtraSamples" in tags) == (pixels.shape[2] in (2, 4))
    np.testing.assert_array_equal(strips_of(target).reshape(22, 14, -1), large(pixels))
    np.testing.assert_array_equal(read_picture(target).pixels, large(pixels))


def strips_of(path) -> np.ndarray:
    """uint16 [H, W*C] of a deflated TIFF with horizontal differences, little-endian, by the format's description."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        assert (page.compression, page.predictor, file.byteorder) == (8, 2, "<")
        data = path.read_bytes()
        strips = zip(page.dataoffsets, page.databytecounts, strict=True)
        differences = np.frombuffer(b"".join(zlib.decompress(data[at : at + size]) for at, size in strips), "<u2")
        return np.cumsum(differences.reshape(page.imagelength, page.imagewidth, -1), axis=1, dtype=np.uint16)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("kind", ["RGB", "RGBA"])
def test_16_bit_tiff_is_read_exactly(tmp_path, byteorder, compression, tile, kind):
    extra = {"extrasamples": ["unassalpha"]} if kind == "RGBA" else {}
    tifffile.imwrite(
        tmp_path / "a.tif",
        DEEP[kind],
        photometric="rgb",
        byteorder=byteorder,
        compression=compression,
        tile=tile,
        metadata=None,
        **extra,
    )
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.pixels, DEEP[kind])


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_grey_tiff_is_read_exactly(tmp_path, byteorder, compression):
    tifffile.imwrite(
        tmp_path / "a.tif",
        GREY16,
        photometric="minisblack",
        byteorder=byteorder,
        compression=compression,
        metadata=None,
    )
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, GREY16[..., None])


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_tiff_whose_0_is_white(tmp_path, dtype, orientation):
    grey = GREY.astype(dtype) if dtype == np.uint8 else GREY16
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="miniswhite", extratags=tags, metadata=None)
    upright = np.iinfo(dtype).max - (np.rot90(grey, -1) if orientation == 6 else grey)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels[..., 0], upright)
    with Image.open(io.BytesIO((tmp_path / "a.tif").read_bytes())) as image:
        np.testing.assert_array_equal(read_picture(image).pixels[..., 0], upright)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_premultiplied_tiff_is_divided_exactly(tmp_path, byteorder, compression):
    pixels = DEEP["RGBA"].copy()
    pixels[..., :3] = np.minimum(pixels[..., :3], pixels[..., 3:])
    pixels[0, 0], pixels[0, 1], pixels[0, 2] = (
        (0, 0, 0, 0),
        (65535, 1, 0, 65535),
        (9, 9, 9, 3),
    )  # the last is more than white
    options = {"photometric": "rgb", "extrasamples": ["assocalpha"], "byteorder": byteorder, "compression": compression}
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata=None, **options)
    picture = read_picture(tmp_path / "a.tif")
    colours, alpha = pixels[..., :3].astype(float), pixels[..., 3:].astype(float)
    expected = np.floor(np.minimum(65535, colours * 65535 / np.maximum(alpha, 1)) + 0.5)
    np.testing.assert_array_equal(picture.pixels[..., :3], expected)
    np.testing.assert_array_equal(picture.pixels[..., 3], pixels[..., 3])
    assert picture.notes == []


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("pixels", [GREY, GREY16, np.dstack([RGB, ALPHA])], ids=["grey", "16 bits of grey", "RGBA"])
def test_turned_tiff_of_any_channels(tmp_path, pixels, compression, orientation):
    options = (
        {"photometric": "rgb", "extrasamples": ["unassalpha"]} if pixels.ndim == 3 else {"photometric": "minisblack"}
    )
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels,
        compression=compression,
        extratags=[(274, "H", 1, orientation, True)],
        metadata=None,
        **options,
    )
    mirrored = pixels[:, ::-1] if orientation in (5, 7) else pixels
    expected = np.rot90(mirrored, 1 if orientation in (5, 8) else -1)
    np.testing.assert_array_equal(np.squeeze(read_picture(tmp_path / "a.tif").pixels), expected)
    if pixels.dtype == np.uint8:
        np.testing.assert_array_equal(
            read_image(tmp_path / "a.tif"), expected[..., :3] if pixels.ndim == 3 else np.dstack([expected] * 3)
        )


def test_16_bits_that_pillow_reads_as_8_are_said(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", DEEP["RGBA"], photometric="separated", metadata=None)
    picture = read_picture(tmp_path / "a.tif")
    assert (picture.pixels.dtype, picture.pixels.shape) == (np.uint8, (11, 7, 3))
    assert picture.notes == ["16 bits read as 8: Pillow keeps no more of such TIFF files"]


def test_planes_mean_nothing_to_one_channel(tmp_path):
    for compression in (None, "tiff_deflate"):
        Image.fromarray(GREY16).save(tmp_path / "a.tif", tiffinfo={284: 2}, compression=compression)
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            assert file.pages[0].planarconfig == 2
        np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels[..., 0], GREY16)


def test_16_bit_tiff_in_planes_is_refused_rather_than_read_wrongly(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.ascontiguousarray(RGB16.transpose(2, 0, 1)),
        photometric="rgb",
        planarconfig="separate",
        metadata=None,
    )
    with pytest.raises(ValueError, match="interleaved"):
        read_picture(tmp_path / "a.tif")


def test_8_bit_tiff_in_planes(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.ascontiguousarray(RGB.transpose(2, 0, 1)),
        photometric="rgb",
        planarconfig="separate",
        metadata=None,
    )
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_colours_are_turned_as_8_bit_ones(tmp_path, saved, orientation):
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    source = tmp_path / "deep.png"
    source.write_bytes(png16(RGB16, "0", (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))))
    plain = read_picture(saved("plain.png", (RGB16 >> 8).astype(np.uint8), exif=exif))
    np.testing.assert_array_equal(read_picture(source).pixels >> 8, plain.pixels)
    np.testing.assert_array_equal(np.sort(read_picture(source).pixels, axis=None), np.sort(RGB16, axis=None))


@pytest.mark.parametrize("pixels", [RGB16, GREY16[..., None]], ids=["RGB", "grey"])
def test_transparent_colour_of_16_bits_becomes_alpha(tmp_path, pixels):
    source = tmp_path / "a.png"
    source.write_bytes(png16(pixels, "0", (b"tRNS", pixels[3, 4].astype(">u2").tobytes())))
    expected = np.full((11, 7), 65535, np.uint16)
    expected[(pixels == pixels[3, 4]).all(axis=2)] = 0
    np.testing.assert_array_equal(read_picture(source).pixels, np.dstack([pixels, expected]))


@pytest.mark.parametrize(("suffix", "mode"), [(".jpg", "RGB"), (".webp", "RGB")])
def test_16_bits_into_a_format_of_8(tmp_path, made, suffix, mode):
    flat = np.full((16, 16, 3), 40000, np.uint16)
    (tmp_path / "a.png").write_bytes(png16(flat))
    target, (note,) = made(tmp_path / "a.png", suffix)
    assert "16 bits reduced to the 8" in note
    got, pixels = opened(target)
    assert got == mode
    assert np.abs(pixels.astype(float) - 40000 / 257).max() <= 2


def test_16_bits_are_reduced_to_the_nearest_of_8():
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    picture = fit(Picture(every, Image.Exif(), None, None), (512, 512), "JPEG")
    np.testing.assert_array_equal(picture.pixels, np.rint(every / 257))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_of_pillow(saved, made, name):
    mode, pixels = opened(made(saved(name, GREY16), ".png")[0])
    assert mode.startswith("I;16")
    np.testing.assert_array_equal(pixels, large(GREY16))


def test_32_bit_integers_within_16_bits_are_taken_as_such(saved):
    np.testing.assert_array_equal(read_picture(saved("a.tif", GREY16.astype(np.int32))).pixels[..., 0], GREY16)


@pytest.mark.parametrize("value", [-1, 65536])
def test_32_bit_integers_beyond_are_refused(saved, value):
    with pytest.raises(ValueError, match="no defined range"):
        read_picture(saved("a.tif", np.full((3, 4), value, np.int32)))


def test_16_bit_tiff_of_several_pages(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([RGB16, RGB16[::-1]]), photometric="rgb", metadata=None)
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.pixels, RGB16)
    assert picture.notes == ["the first of its 2 pictures"]


def test_truncated_16_bit_png(tmp_path):
    content = png16(RNG.integers(0, 65536, (64, 64, 3), dtype=np.uint16))
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"^.{5,}$"):
        read_picture(tmp_path / "a.png")
