"""One picture: a file's pixels and metadata (read_picture). enlarge.py and encode.py make the new file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from rdn_fast.data.decode import decode, one_line_errors
from rdn_fast.data.image_formats import open_image
from rdn_fast.data.jxl_header import read_jxl_header
from rdn_fast.errors import why_no_file
from rdn_fast.pictures import metadata
from rdn_fast.pictures.metadata import Extras

QUALITY = 95  # of lossy results: what compression changes is hardly seen, even where a picture is up-scaled again


@dataclass
class Picture:
    """pixels: uint8 or uint16 [H, W, C], upright; C: 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).

    dpi: horizontal, vertical. notes: in words, what of the file could not be kept. lossless: the file was a lossless
    WebP or JPEG XL, which the result then is, too. quality: of a lossy result, 1 to 100.
    """

    pixels: np.ndarray
    exif: Image.Exif
    icc_profile: bytes | None
    dpi: tuple[float, float] | None
    notes: list[str] = field(default_factory=list)
    extras: Extras = field(default_factory=Extras)
    lossless: bool = False
    quality: int = QUALITY

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


def read_picture(source: str | Path | Image.Image, max_pixels: int = 0) -> Picture:
    """Read any picture that Pillow reads, as decode() does, with its metadata; of several frames or pages the first.

    max_pixels: refuse larger pictures before decoding them; 0: no limit. Raises ValueError with the reason in one line:
    not a picture, of a format for which Pillow starts a program (EPS), damaged, too large, float pixels.
    """
    with one_line_errors():
        if isinstance(source, Image.Image):
            return _picture(source, None)
        if (flaw := why_no_file(source)) is not None:  # a pipe would be waited for
            raise ValueError(flaw)
        if header := read_jxl_header(source):  # opening decodes it
            _check_pixels(header.width, header.height, max_pixels)
        with open_image(source) as image:
            _check_pixels(image.width, image.height, max_pixels)
            # An MPO file holds a photograph and its previews.
            frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
            picture = _picture(image, source)
            if frames > 1:
                picture.notes.append(f"the first of its {frames} pictures")
            return picture


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if max_pixels and width * height > max_pixels:
        reason = "as files made to exhaust the memory have; give a larger one if you trust it"
        raise ValueError(f"{width}x{height} pixels are more than --max-pixels {max_pixels}, {reason}")


def _picture(image: Image.Image, path: str | Path | None) -> Picture:
    turned = metadata.is_turned(image)
    pixels, icc_profile, notes = decode(image, path)  # first: after a failed load, getexif() would hide the failure
    exif, exif_notes = metadata.kept_exif(image)
    lossless = path is not None and _is_lossless(image, path)
    extras = metadata.extras(image, path, turned)
    return Picture(pixels, exif, icc_profile, metadata.dpi(image), [*exif_notes, *notes], extras, lossless)


def _is_lossless(image: Image.Image, path: str | Path) -> bool:
    if image.format == "JXL":
        header = read_jxl_header(path)
        return bool(header and header.keeps_colours and not image.jpeg)
    return image.format == "WEBP" and _is_lossless_webp(path)


def _is_lossless_webp(path: str | Path) -> bool:
    """Return whether the (first) picture of a WebP file is stored without loss."""
    with open(path, "rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            name, size = head[:4], int.from_bytes(head[4:], "little")
            if name == b"ANMF":  # a frame: 16 bytes, and then chunks
                file.seek(16, 1)
            elif name in (b"VP8 ", b"VP8L"):
                return name == b"VP8L"
            else:
                file.seek(size + size % 2, 1)
    return False
