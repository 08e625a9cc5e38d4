"""Pictures of 16 bits and several channels, which Pillow reads with 8 bits and does not write."""

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
from PIL.PngImagePlugin import putchunk
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from rdn_fast.data.images import open_image

_OTHER = {
    "B": "L",
    "L": "B",
    "N": "B" if sys.byteorder == "little" else "L",
}  # byte orders as Pillow's raw modes name them
_ROWS = 64  # that are packed together: a large picture should not be in memory several times


def read_deep(path: str | Path, image: Image.Image) -> np.ndarray | None:
    """uint16 [H, W, C], upright, of a PNG or TIFF file that is open as `image` and not loaded; None where Pillow keeps all that there is.

    Pillow keeps the first of a sample's two bytes, in the byte order that it is told: told the other one it keeps the second.
    """
    raw = _raw_mode(image)
    if (
        image.format == "TIFF"
        and image.tag_v2.get(284) == 2
        and image.tag_v2.get(277, 1) > 1
        and 16 in image.tag_v2.get(258, ())
    ):
        raise ValueError(
            "a TIFF of 16 bits whose channels lie apart; save it with interleaved channels"
        )  # Pillow would take one for another
    if raw == "I" and image.mode.startswith(
        "I;16"
    ):  # the one channel of a TIFF in planes, each of which Pillow calls by one letter
        _set_raw_mode(image, image.mode)
    if raw == "LA;16B":  # four bytes that may as well be four channels
        _set_raw_mode(image, "RGBA")
        return np.array(ImageOps.exif_transpose(image)).view(">u2").astype(np.uint16)
    if not re.fullmatch(r"RGB[AaX]?;16[BLN]", raw):
        return None
    as_stored = raw.replace("a", "A")  # for Pillow would divide by alpha, a byte at a time
    _set_raw_mode(image, as_stored)
    with open_image(path) as other:
        _set_raw_mode(other, as_stored[:-1] + _OTHER[raw[-1]])
        low = np.array(ImageOps.exif_transpose(other))
    pixels = np.array(ImageOps.exif_transpose(image)).astype(np.uint16) << 8 | low
    return pixels if raw == as_stored else _divided(pixels)


def _divided(pixels: np.ndarray) -> np.ndarray:
    """uint16 [H, W, 4] whose colours have been multiplied by alpha -> without that."""
    for rows in np.array_split(pixels, -(-len(pixels) // _ROWS)):
        alpha = rows[..., 3:].astype(np.uint32)
        rows[..., :3] = np.minimum(
            65535, (rows[..., :3].astype(np.uint32) * 65535 + alpha // 2) // np.maximum(alpha, 1)
        )
    return pixels


def _raw_mode(image: Image.Image) -> str:
    arguments = image.tile[0].args if image.tile else ""
    return arguments if isinstance(arguments, str) else str((*(arguments or ()), "")[0])


def _set_raw_mode(image: Image.Image, raw: str) -> None:
    image.tile = [
        tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:])) for tile in image.tile
    ]


def encode_png(
    pixels: np.ndarray, level: int, icc_profile: bytes = b"", exif: bytes = b"", dpi: tuple[float, float] | None = None
) -> bytes:
    """pixels: uint16 [H, W, 1 to 4] (grey, with alpha, RGB, with alpha) -> a PNG file; exif as Pillow gives it."""
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
    """pixels: uint8 or uint16 [H, W, 1 to 4], as above -> a deflated TIFF file. Those of 8 bits that Pillow compresses cannot hold EXIF data."""
    height, width, channels = pixels.shape
    strips = []
    for top in range(0, height, _ROWS):
        rows = pixels[top : top + _ROWS].astype(pixels.dtype.newbyteorder("<"))
        rows[:, 1:] -= pixels[top : top + _ROWS, :-1]  # predictor 2: differences of neighbours
        strips.append(zlib.compress(rows.tobytes(), level))
    sizes = [len(strip) for strip in strips]
    tags = {
        256: width,
        257: height,
        258: (8 * pixels.itemsize,) * channels,
        259: 8,
        262: 2 if channels > 2 else 1,
        277: channels,
        278: _ROWS,
        317: 2,
    }
    tags |= {
        273: tuple(accumulate(sizes[:-1], initial=0)),
        279: tuple(sizes),
    }  # save() turns these into offsets from the file's beginning
    if channels in (2, 4):
        tags[338] = 2  # alpha, which the colours are not multiplied by
    if icc_profile:
        tags[34675] = icc_profile
    if dpi:
        tags |= {282: dpi[0], 283: dpi[1], 296: 2}
    directory = ImageFileDirectory_v2(prefix=b"II")
    directory.tagtype |= {273: TiffTags.LONG, 279: TiffTags.LONG}
    for tag, value in {**(exif or {}), **tags}.items():
        directory[tag] = value
    file = io.BytesIO()
    directory.save(file)
    file.writelines(strips)
    return file.getvalue()
