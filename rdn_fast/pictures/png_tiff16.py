"""Encode PNG and TIFF files with 16 bits and several channels, which Pillow does not write."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Mapping
from itertools import accumulate

import numpy as np
from PIL import Image, TiffTags
from PIL.ExifTags import Base
from PIL.PngImagePlugin import putchunk
from PIL.TiffImagePlugin import ImageFileDirectory_v2

_ROWS = 64  # converted and compressed at a time, so that a large picture is not in memory several times


def encode_png(
    pixels: np.ndarray,
    level: int,
    icc_profile: bytes = b"",
    exif: bytes = b"",
    dpi: tuple[float, float] | None = None,
    chunks: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """Return a PNG file.

    pixels: uint16 [H, W, C]; C: 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha). level: zlib's, 0 to 9.
    exif: as Image.Exif.tobytes() gives it. chunks: name and data of more chunks before the pixels.
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
    for name, data in chunks:
        putchunk(file, name, data)
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
    tags: Mapping[int, bytes | tuple | str] | None = None,
) -> bytes:
    """Return a deflated TIFF file, of 8 bits too: those that Pillow compresses cannot hold EXIF data.

    pixels: uint8 or uint16 [H, W, C], C as above. level: zlib's, 0 to 9. tags: more of them, with their values.
    """
    height, width, channels = pixels.shape
    strips = []
    for top in range(0, height, _ROWS):
        rows = pixels[top : top + _ROWS].astype(pixels.dtype.newbyteorder("<"))
        rows[:, 1:] -= pixels[top : top + _ROWS, :-1]  # predictor 2: differences from the left neighbour
        strips.append(zlib.compress(rows.tobytes(), level))
    sizes = [len(strip) for strip in strips]
    stored = {
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
        stored[Base.ExtraSamples] = 2  # alpha, not premultiplied
    if icc_profile:
        stored[Base.InterColorProfile] = icc_profile
    if dpi:
        stored |= {Base.XResolution: dpi[0], Base.YResolution: dpi[1], Base.ResolutionUnit: 2}  # inch
    directory = ImageFileDirectory_v2(prefix=b"II")
    directory.tagtype |= {Base.StripOffsets: TiffTags.LONG, Base.StripByteCounts: TiffTags.LONG}
    for tag, value in {**(exif or {}), **(tags or {}), **stored}.items():
        directory[tag] = value
    file = io.BytesIO()
    directory.save(file)
    file.writelines(strips)
    return file.getvalue()
