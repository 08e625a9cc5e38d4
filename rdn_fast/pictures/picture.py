"""One picture: a file's pixels and metadata (read_picture). enlarge.py and encode.py make the new file."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.ExifTags import IFD, Base

from rdn_fast.data.decode import decode, one_line_errors
from rdn_fast.data.image_formats import open_image

# The tags that describe the picture. Others describe how the source file stores it, which is not true of the result.
_EXIF_TAGS = {
    Base.DocumentName,
    Base.ImageDescription,
    Base.Make,
    Base.Model,
    Base.Software,
    Base.DateTime,
    Base.Artist,
    Base.HostComputer,
    Base.Rating,
    Base.RatingPercent,
    Base.Copyright,
    Base.XPTitle,
    Base.XPComment,
    Base.XPAuthor,
    Base.XPKeywords,
    Base.XPSubject,
    IFD.Exif,
    IFD.GPSInfo,
}


@dataclass
class Picture:
    """pixels: uint8 or uint16 [H, W, C], upright; C: 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).

    dpi: horizontal, vertical. notes: in words, what of the file could not be kept.
    """

    pixels: np.ndarray
    exif: Image.Exif
    icc_profile: bytes | None
    dpi: tuple[float, float] | None
    notes: list[str] = field(default_factory=list)


def read_picture(source: str | Path | Image.Image, max_pixels: int = 0) -> Picture:
    """Read any picture that Pillow reads, as decode() does, with its metadata; of several frames or pages the first.

    max_pixels: refuse larger pictures before decoding them; 0: no limit. Raises ValueError with the reason in one line:
    not a picture, of a format for which Pillow starts a program (EPS), damaged, too large, float pixels.
    """
    with one_line_errors():
        if isinstance(source, Image.Image):
            return _picture(source, None)
        with open_image(source) as image:
            if max_pixels and image.width * image.height > max_pixels:
                size, limit = f"{image.width}x{image.height} pixels", f"--max-pixels {max_pixels}"
                reason = "as files made to exhaust the memory have; give a larger one if you trust it"
                raise ValueError(f"{size} are more than {limit}, {reason}")
            # An MPO file holds a photograph and its previews.
            frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
            picture = _picture(image, source)
            if frames > 1:
                picture.notes.append(f"the first of its {frames} pictures")
            return picture


def _picture(image: Image.Image, path: str | Path | None) -> Picture:
    pixels, icc_profile, notes = decode(image, path)  # first: after a failed load, getexif() would hide the failure
    exif, exif_notes = _kept_exif(image)
    return Picture(pixels, exif, icc_profile, _dpi(image), [*exif_notes, *notes])


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    dpi = image.info.get("dpi")
    if dpi is None or not all(isfinite(dots) and dots > 0 for dots in dpi):
        return None
    if image.format == "TIFF" and Base.XResolution not in image.tag_v2:  # Pillow then reports 1 DPI
        return None
    return tuple(map(float, dpi))


def _kept_exif(image: Image.Image) -> tuple[Image.Exif, list[str]]:
    """Return the picture's EXIF tags that are true of the result, and a note when they cannot be read."""
    kept = Image.Exif()
    try:
        found = image.getexif()
        for tag in _EXIF_TAGS & set(found):
            if tag in (IFD.Exif, IFD.GPSInfo):
                tags = {key: value for key, value in found.get_ifd(tag).items() if key != IFD.Interop}
                kept.get_ifd(tag).update(tags)
                kept[tag] = kept.get_ifd(tag)
            else:
                kept[tag] = found[tag]
        kept.tobytes()
    except Exception:  # Pillow raises nearly anything
        return Image.Exif(), ["its EXIF data is damaged and left out"]
    return kept, []
