"""Files that are no pictures, and pictures that a format cannot hold: refused in one line, before any work."""

import io
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from rdn_fast.data.images import read_image
from rdn_fast.pictures.encode import encode, fit
from rdn_fast.pictures.picture import Picture, read_picture


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp", "a.gif", "a.bmp"])
def test_truncated(saved, photograph, name):
    path = saved(name, photograph(64, 64))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"^.{5,}$"):
        read_picture(path)


@pytest.mark.parametrize(
    "content", [b"", b"text, no picture", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "nothing but the magic"]
)
def test_not_a_picture(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"^not a picture of a kind that Pillow reads$"):
        read_picture(tmp_path / "a.png")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
IPTC = b"".join(
    b"\x1c" + bytes(tag) + struct.pack(">H", len(data)) + data
    for tag, data in (((3, 20), b"\4"), ((3, 30), b"\4"), ((3, 60), b"\1\0"), ((3, 120), b"\5"), ((8, 10), EPS))
)


@pytest.mark.parametrize("reader", [read_picture, read_image], ids=["upscale", "prepare"])
@pytest.mark.parametrize(
    "content", [EPS, IPTC, b"GRIB\0\0\0\1", b"\0\0\1\xb3\0\x40\x04"], ids=["EPS", "EPS in IPTC", "GRIB", "MPEG"]
)
def test_no_program_is_started_for_a_file(tmp_path, monkeypatch, content, reader):
    for start in ("Popen", "check_call", "check_output", "call", "run"):
        monkeypatch.setattr(subprocess, start, lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was asked"))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not a picture|cannot identify"):
        reader(path)


def test_floats_are_refused(saved):
    with pytest.raises(ValueError, match="float pixels have no defined range"):
        read_picture(saved("a.tif", np.zeros((3, 4), np.float32)))


def test_too_many_pixels_are_refused_before_decoding(tmp_path):
    # The header of 60,000 x 60,000 pixels, and no pixels at all.
    path = tmp_path / "bomb.png"
    header = b"IHDR" + struct.pack(">2I5B", 12_000, 9_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 9)
        + b"IDAT"
    )
    with pytest.raises(ValueError, match="12000x9000 pixels are more than --max-pixels 1000000"):
        read_picture(path, max_pixels=1_000_000)
    with pytest.raises(ValueError, match="truncated"):
        read_picture(path)


@pytest.mark.parametrize(("format", "edge"), [("JPEG", 65_500), ("WEBP", 16_383)])
def test_result_larger_than_its_format_holds(format, edge):
    def of(width):
        return Picture(np.zeros((1, width, 3), np.uint8), Image.Exif(), None, None)

    assert fit(of(edge // 2), (2 * (edge // 2), 2), format).notes == []
    with pytest.raises(
        ValueError,
        match=rf"{2 * (edge // 2 + 1)}x2 pixels of the result are more than {format} files hold; give --ext png",
    ):
        fit(of(edge // 2 + 1), (2 * (edge // 2 + 1), 2), format)


def test_result_larger_than_a_tiff_holds():
    wide = np.broadcast_to(np.zeros((1, 1, 3), np.uint16), (20_000, 20_000, 3))
    with pytest.raises(ValueError, match="TIFF"):
        fit(Picture(wide, Image.Exif(), None, None), (40_000, 40_000), "TIFF")
    assert fit(Picture(wide, Image.Exif(), None, None), (40_000, 40_000), "PNG").pixels is wide


@pytest.mark.parametrize(("format", "edge"), [("JPEG", 65_500), ("WEBP", 16_383)])
def test_what_fits_can_be_written(format, edge):
    content = encode(Picture(np.zeros((1, edge, 3), np.uint8), Image.Exif(), None, None), format)
    assert Image.open(io.BytesIO(content)).size == (edge, 1)
