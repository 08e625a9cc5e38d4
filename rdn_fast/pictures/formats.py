"""The formats that are written: their extensions, what they can hold, and the quality of lossy ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from PIL import Image

from rdn_fast.data.plugins import missing_plugins, remedy_for_format
from rdn_fast.errors import UserError
from rdn_fast.pictures.picture import QUALITY, Picture

# As Pillow names them, by a file's extension.
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".avif": "AVIF",
    ".heic": "HEIF",
    ".heif": "HEIF",
    ".hif": "HEIF",
    ".jxl": "JXL",
}
LOSSY = {"JPEG", "WEBP", "AVIF", "HEIF", "JXL"}  # they are written with 8 bits
_LOSSLESS = {"PNG", "TIFF", "WEBP", "JXL"}
LONGEST_EDGE = {"JPEG": 65_500, "WEBP": 16_383, "AVIF": 65_535, "HEIF": 65_535}  # pixels


def why_not_written(format: str) -> str | None:
    """Return in words why Pillow does not write this format here, and what to do; None where it does."""
    missing_plugins()  # registers those that are there
    if format in Image.SAVE:
        return None
    return remedy_for_format(format) or f"this Pillow was built without {format}; pip install -U pillow"


def check_quality(quality: int | None, lossless: bool | None, formats: Iterable[str]) -> None:
    """Raise UserError when --quality and --lossless make no sense for the formats that are to be written."""
    formats = set(formats)
    if quality is not None and not 1 <= quality <= 100:
        raise UserError(f"--quality {quality}: give a number from 1 to 100")
    if quality is not None and lossless:
        raise UserError("--quality and --lossless contradict each other; leave one out")
    lossy_only = ", ".join(sorted(formats - _LOSSLESS))
    if lossless and lossy_only:
        raise UserError(f"--lossless: {lossy_only} files are never lossless; give --ext png, tif, webp or jxl")
    if (quality is not None or lossless is False) and formats and not formats & LOSSY:
        flag = "--no-lossless" if quality is None else f"--quality {quality}"
        raise UserError(f"{flag}: {', '.join(sorted(formats))} files are always lossless; leave it out, or give --ext")


def with_quality(picture: Picture, format: str, quality: int | None, lossless: bool | None) -> Picture:
    """Return the picture with the quality of its result; one that is lossless stays so unless `lossless` is False."""
    stays = lossless is None and picture.lossless and format in _LOSSLESS
    notes = picture.notes
    if stays and quality is not None and format in LOSSY:
        notes = [*notes, f"lossless as it was; --no-lossless writes it with quality {quality}"]
    return replace(picture, lossless=bool(stays or lossless), quality=quality or QUALITY, notes=notes)
