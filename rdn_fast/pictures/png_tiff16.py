"""PNG and TIFF with 16 bits and several channels, which Pillow reads with 8 bits and does not write."""

from __future__ import annotations

import io
import re
import struct
import sys
import zlib
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, TiffTags
from PIL.ExifTags import Base
from PIL.PngImagePlugin import putchunk
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from rdn_fast.data.images import open_image

# The other byte order, in the letters of Pillow's raw modes: big, little, native.
_OTHER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_ROWS = 64  # converted and compressed at a time, so that a large picture is not in memory several times


def read_deep(path: str | Path, image: Image.Image) -> np.ndarray | None:
    """Read pixels that Pillow would reduce from 16 bits to 8: uint16 [H, W, C], upright. None where it would not.

    image: the PNG or TIFF file at `path`, opened but not loaded. Raises ValueError for a TIFF of 16-bit planes.

    Pillow keeps the first of a sample's two bytes, by the byte order that it is told. Told the other one it keeps the
    second, so the file is decoded twice.
    """
    raw = _raw_mode(image)
    if image.format == "TIFF" and _has_16_bit_planes(image):  # Pillow would mix up the planes
        raise ValueError("a TIFF of 16 bits whose channels lie apart; save it with interleaved channels")
    if raw == "I" and image.mode.startswith("I;16"):  # one channel in planes, which Pillow calls by one letter
        _set_raw_mode(image, image.mode)
    if raw == "LA;16B":  # four bytes, read as four channels
        _set_raw_mode(image, "RGBA")
        return np.array(ImageOps.exif_transpose(image)).view(">u2").astype(np.uint16)
    if not re.fullmatch(r"RGB[AaX]?;16[BLN]", raw):
        return None
    as_stored = raw.replace("a", "A")  # Pillow would divide premultiplied colours by alpha, one byte at a time
    _set_raw_mode(image, as_stored)
    with open_image(path) as other:
        _set_raw_mode(other, as_stored[:-1] + _OTHER[raw[-1]])
        low = np.array(ImageOps.exif_transpose(other))
    pixels = np.array(ImageOps.exif_transpose(image)).astype(np.uint16) << 8 | low
    return pixels if raw == as_stored else _divide_by_alpha(pixels)


def _has_16_bit_planes(image: Image.Image) -> bool:
    tags = image.tag_v2
    planes = tags.get(Base.PlanarConfiguration) == 2 and tags.get(Base.SamplesPerPixel, 1) > 1
    return planes and 16 in tags.get(Base.BitsPerSample, ())


def _divide_by_alpha(pixels: np.ndarray) -> np.ndarray:
    """Undo, in place, the multiplication of the colours by alpha; pixels: uint16 [H, W, 4]."""
    for rows in np.array_split(pixels, -(-len(pixels) // _ROWS)):
        alpha = rows[..., 3:].astype(np.uint32)
        divided = (rows[..., :3].astype(np.uint32) * 65535 + alpha // 2) // np.maximum(alpha, 1)
        rows[..., :3] = np.minimum(65535, divided)
    return pixels


def _raw_mode(image: Image.Image) -> str:
    """Return how Pillow's decoder takes the stored bytes, such as "RGB;16B"; "" where it has no such mode."""
    arguments = image.tile[0].args if image.tile else ""
    return arguments if isinstance(arguments, str) else str((*(arguments or ()), "")[0])


def _set_raw_mode(image: Image.Image, raw: str) -> None:
    image.tile = [
        tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:])) for tile in image.tile
    ]


def encode_png(
    pixels: np.ndarray, level: int, icc_profile: bytes = b"", exif: bytes = b"", dpi: tuple[float, float] | None = None
) -> bytes:
    """Return a PNG file.

    pixels: uint16 [H, W, C]; C: 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha). level: zlib's, 0 to 9.
    exif: as Image.Exif.tobytes() gives it.
    """
    height, width, channels = pixels.shape
    file = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    file.seek(0, io.SEEK_END)
    putchunk(file, b"IHDR", struct.pack(">2I5B", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0))
    if icc_profile:
        putchunk(file, b"iCCP", b"ICC Profile\0\0", zlib.compress(icc_profile))
    if dpi:
        putchunk(file, b"pHYs", struct.pack(">2IB", *(round(dots / 0.0254) for dots in dpi), 1))
    if exif:
        putchunk(file, b"eXIf", exif.removeprefix(b"Exif\0\0"))
    deflate = zlib.compressobj(level)
    above = np.zeros((1, 2 * width * channels), np.uint8)
    for top in range(0, height, _ROWS):
        rows = pixels[top : top + _ROWS].astype(">u2").reshape(-1, width * channels).view(np.uint8)  # [_ROWS, 2*W*C]
        filtered = rows - np.concatenate([above, rows[:-1]])  # filter 2, "up"
        putchunk(file, b"IDAT", deflate.compress(np.insert(filtered, 0, 2, axis=1)))
        above = rows[-1:]
    putchunk(file, b"IDAT", deflate.flush())
    putchunk(file, b"IEND", b"")
    return file.getvalue()


def encode_tiff(
    pixels: np.ndarray,
    level: int,
    icc_profile: bytes = b"",
    exif: Image.Exif | None = None,
    dpi: tuple[float, float] | None = None,
) -> bytes:
    """Return a deflated TIFF file, of 8 bits too: those that Pillow compresses cannot hold EXIF data.

    pixels: uint8 or uint16 [H, W, C], C as above. level: zlib's, 0 to 9.
    """
    height, width, channels = pixels.shape
    strips = []
    for top in range(0, height, _ROWS):
        rows = pixels[top : top + _ROWS].astype(pixels.dtype.newbyteorder("<"))
        rows[:, 1:] -= pixels[top : top + _ROWS, :-1]  # predictor 2: differences from the left neighbour
        strips.append(zlib.compress(rows.tobytes(), level))
    sizes = [len(strip) for strip in strips]
    tags = {
        Base.ImageWidth: width,
        Base.ImageLength: height,
        Base.BitsPerSample: (8 * pixels.itemsize,) * channels,
        Base.Compression: 8,  # deflate
        Base.PhotometricInterpretation: 2 if channels > 2 else 1,  # RGB, grey
        Base.SamplesPerPixel: channels,
        Base.RowsPerStrip: _ROWS,
        Base.Predictor: 2,
        # From the first strip. Saving the directory turns these into offsets in the file.
        Base.StripOffsets: tuple(accumulate(sizes[:-1], initial=0)),
        Base.StripByteCounts: tuple(sizes),
    }
    if channels in (2, 4):
        tags[Base.ExtraSamples] = 2  # alpha, not premultiplied
    if icc_profile:
        tags[Base.InterColorProfile] = icc_profile
    if dpi:
        tags |= {Base.XResolution: dpi[0], Base.YResolution: dpi[1], Base.ResolutionUnit: 2}  # inch
    directory = ImageFileDirectory_v2(prefix=b"II")
    directory.tagtype |= {Base.StripOffsets: TiffTags.LONG, Base.StripByteCounts: TiffTags.LONG}
    for tag, value in {**(exif or {}), **tags}.items():
        directory[tag] = value
    file = io.BytesIO()
    directory.save(file)
    file.writelines(strips)
    return file.getvalue()
