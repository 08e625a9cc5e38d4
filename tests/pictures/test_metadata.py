"""EXIF, ICC profiles, resolution, orientation and frames: what is kept of them, and what a note says is left out."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from by_hand import RGB, RGB16, SRGB, opened, png16, repeated
from PIL import Image
from PIL.ExifTags import IFD, Base

from rdn_fast.pictures.encode import encode, fit
from rdn_fast.pictures.enlarge import enlarge
from rdn_fast.pictures.formats import FORMATS
from rdn_fast.pictures.picture import Picture, read_picture


@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_profile_dpi_and_exif_are_kept(tmp_path, suffix, deep):
    exif = Image.Exif()
    exif[Base.Make], exif[Base.Copyright], exif[Base.ImageWidth], exif[Base.Orientation] = "Camera", "Somebody", 7, 6
    exif[IFD.Exif] = {
        Base.ISOSpeedRatings: 400,
        Base.ExifImageWidth: 7,
        Base.ExifImageHeight: 11,
        Base.FocalLength: 50.0,
    }
    exif[IFD.GPSInfo] = {1: "N"}
    source = io.BytesIO()
    if deep:
        chunks = (
            (b"iCCP", b"x\0\0" + zlib.compress(SRGB)),
            (b"pHYs", struct.pack(">2IB", 11811, 11811, 1)),
            (b"eXIf", exif.tobytes()[6:]),
        )
        source.write(png16(RGB16, "4", *chunks))
    else:
        Image.fromarray(RGB).save(source, "PNG", exif=exif, icc_profile=SRGB, dpi=(300, 300))
    (tmp_path / "a.png").write_bytes(source.getvalue())
    format = FORMATS[suffix]
    content = encode(enlarge(fit(read_picture(tmp_path / "a.png"), (22, 14), format), repeated), format)
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (22, 14)  # turned
        assert image.info["icc_profile"] == SRGB
        if suffix != ".webp":  # which has no place for it
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        kept = image.getexif()
        assert (kept[Base.Make], kept[Base.Copyright].rstrip("\0")) == ("Camera", "Somebody")
        assert kept.get(Base.Orientation, 1) == 1
        assert kept.get(Base.ImageWidth, 22) == 22
        assert kept.get_ifd(IFD.GPSInfo)[1].rstrip("\0") == "N"
        inner = kept.get_ifd(IFD.Exif)
        assert (inner[Base.ISOSpeedRatings], float(inner[Base.FocalLength])) == (400, 50)
        assert (inner[Base.ExifImageWidth], inner[Base.ExifImageHeight]) == (22, 14)


def test_without_exif_there_is_none_after(saved, made):
    for suffix in (".png", ".jpg", ".webp"):
        with Image.open(made(saved("a.png", RGB), suffix)[0]) as image:
            assert not image.getexif()
            assert not {"icc_profile", "exif"} & set(image.info)


def test_layout_of_a_tiff_is_not_taken_for_exif(tmp_path, made):
    extra = [(65000, "I", 2, (1, 1), True), (271, "s", 0, "Camera", True)]
    tifffile.imwrite(
        tmp_path / "a.tif",
        RGB,
        photometric="rgb",
        tile=(16, 16),
        compression="zlib",
        extratags=extra,
        metadata=None,
        description="a field",
    )
    with tifffile.TiffFile(made(tmp_path / "a.tif")[0]) as file:
        tags = {tag.code: tag.value for tag in file.pages[0].tags}
    assert (tags[270], tags[271]) == ("a field", "Camera")
    assert not {65000, 322, 323, 324, 325} & set(tags)  # private, tiles
    assert (tags[256], tags[257]) == (14, 22)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_orientation_is_applied(saved, name, orientation):
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    corners = np.zeros((32, 64), np.uint8)
    corners[:16, :32], corners[:16, 32:], corners[16:, :32], corners[16:, 32:] = 0, 80, 160, 240
    pixels = read_picture(saved(name, np.dstack([corners] * 3), exif=exif)).pixels.astype(int)
    height, width = pixels.shape[:2]
    assert (height, width) == ((32, 64) if orientation < 5 else (64, 32))
    got = [
        pixels[y, x, 1] for y in (4, height - 4) for x in (4, width - 4)
    ]  # top left, top right, bottom left, bottom right
    a, b, c, d = 0, 80, 160, 240
    expected = [
        (a, b, c, d),
        (b, a, d, c),
        (d, c, b, a),
        (c, d, a, b),
        (a, c, b, d),
        (c, a, d, b),
        (d, b, c, a),
        (b, d, a, c),
    ][orientation - 1]
    assert np.abs(np.subtract(got, expected)).max() <= 4


@pytest.mark.parametrize(("size", "left_out"), [(65_000, False), (70_000, True)])
def test_exif_that_a_jpeg_cannot_hold_is_left_out_and_said(saved, made, size, left_out):
    exif = Image.Exif()
    exif[Base.ImageDescription], exif[IFD.Exif] = "x" * size, {Base.ExifImageWidth: 7, Base.ExifImageHeight: 11}
    source = saved("a.png", RGB, exif=exif)
    target, notes = made(source, ".jpg")
    with Image.open(target) as image:
        assert (Base.ImageDescription in image.getexif()) == (not left_out)
    assert notes == (["its EXIF data is left out: it is larger than a JPEG holds"] if left_out else [])
    target, notes = made(source, ".png")
    with Image.open(target) as image:
        assert len(image.getexif()[Base.ImageDescription]) == size
    assert notes == []


def test_a_tiff_without_a_resolution_has_none(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        assert 282 not in image.tag_v2
    assert read_picture(tmp_path / "a.tif").dpi is None


@pytest.mark.parametrize(("suffix", "most"), [(".jpg", 65_535), (".png", 1e8), (".tif", 2.0**32 - 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_dpi_that_a_format_cannot_hold_are_left_out_and_said(suffix, most, dtype):
    format = FORMATS[suffix]
    for dpi, notes in ((most, []), (2 * most, [f"its DPI are left out: they are more than {format} holds"])):
        picture = fit(Picture(RGB.astype(dtype), Image.Exif(), None, (dpi, dpi)), (7, 11), format)
        with Image.open(io.BytesIO(encode(picture, format))) as image:
            none = 1 if format == "TIFF" else 0  # Pillow's word
            assert image.info.get("dpi", (0, 0))[0] == pytest.approx(none if notes else dpi, rel=1e-6)
        assert [note for note in picture.notes if "16 bits" not in note] == notes


@pytest.mark.parametrize(
    ("channels", "dtype", "suffix", "left_out"),
    [
        (1, np.uint8, ".webp", True),
        (2, np.uint8, ".webp", True),
        (2, np.uint16, ".tif", True),
        (1, np.uint8, ".png", False),
        (1, np.uint16, ".tif", False),
    ],
)
def test_profile_of_grey_is_not_said_of_colours(channels, dtype, suffix, left_out):
    format = FORMATS[suffix]
    profile = SRGB[:16] + b"GRAY" + SRGB[20:]
    for icc_profile, kept in ((profile, None if left_out else profile), (SRGB, SRGB)):
        picture = fit(Picture(np.full((11, 7, channels), 9, dtype), Image.Exif(), icc_profile, None), (7, 11), format)
        with Image.open(io.BytesIO(encode(picture, format))) as image:
            assert image.info.get("icc_profile") == kept
        assert picture.notes == (
            [] if kept else [f"its ICC profile is left out: it is of grey, which {format} holds as colours"]
        )


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x01", b"Exif\0\0II*\0\xff\xff\xff\x7f"]
)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_damaged_exif_does_not_cost_the_picture(saved, made, exif, name):
    _, pixels = opened(made(saved(name, np.full((8, 8, 3), 77, np.uint8), exif=exif))[0])
    assert np.abs(pixels.astype(int) - 77).max() <= 1


@pytest.mark.parametrize(
    ("name", "options"), [("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {}), ("a.tif", {})]
)
def test_first_of_several_frames_is_taken_and_said(saved, name, options):
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "green", "blue")]
    picture = read_picture(saved(name, frames[0], save_all=True, append_images=frames[1:], **options))
    assert set(map(tuple, picture.pixels[..., :3].reshape(-1, 3))) == {(255, 0, 0)}
    assert picture.notes == ["the first of its 3 pictures"]
