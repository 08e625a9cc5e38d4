"""Pixels of PNG and TIFF files with 16 bits and several channels, which Pillow reads with 8 bits."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.ExifTags import Base

from rdn_fast.data.image_formats import open_image, upright

# The other byte order, in the letters of Pillow's raw modes: big, little, native.
_OTHER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_ROWS = 64  # divided at a time, so that a large picture is not in memory several times


def read_deep(path: str | Path, image: Image.Image) -> np.ndarray | None:
    """Read pixels that Pillow would reduce from 16 bits to 8: uint16 [H, W, C], upright. None where it would not.

    image: the PNG or TIFF file at `path`, opened but not loaded. Raises ValueError for a TIFF of 16-bit planes.

    Pillow keeps the first of a sample's two bytes, by the byte order that it is told. Told the other one it keeps the
    second, so the file is decoded twice.
    """
    raw = raw_mode(image)
    if image.format == "TIFF" and _has_16_bit_planes(image):  # Pillow would mix up the planes
        raise ValueError("a TIFF of 16 bits whose channels lie apart; save it with interleaved channels")
    if raw == "I" and image.mode.startswith("I;16"):  # one channel in planes, which Pillow calls by one letter
        _set_raw_mode(image, "I;12" if 12 in image.tag_v2[Base.BitsPerSample] else image.mode)
    if raw == "LA;16B":  # four bytes, read as four channels
        _set_raw_mode(image, "RGBA")
        return np.array(upright(image)).view(">u2").astype(np.uint16)
    if not re.fullmatch(r"RGB[AaX]?;16[BLN]", raw):
        return None
    as_stored = raw.replace("a", "A")  # Pillow would divide premultiplied colours by alpha, one byte at a time
    _set_raw_mode(image, as_stored)
    with open_image(path) as other:
        _set_raw_mode(other, as_stored[:-1] + _OTHER[raw[-1]])
        low = np.array(upright(other))
    pixels = np.array(upright(image)).astype(np.uint16) << 8 | low
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


def raw_mode(image: Image.Image) -> str:
    """Return how Pillow's decoder takes the stored bytes, such as "RGB;16B"; "" where it has no such mode."""
    tile = getattr(image, "tile", None)  # images that are no files have none
    arguments = tile[0].args if tile else ""
    return arguments if isinstance(arguments, str) else str((*(arguments or ()), "")[0])


def _set_raw_mode(image: Image.Image, raw: str) -> None:
    image.tile = [
        tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:])) for tile in image.tile
    ]
