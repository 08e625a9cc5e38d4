"""Which files are opened as pictures, and how."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import Image
from PIL.ImageFile import StubImageFile

from rdn_fast.data.png_chunks import without_large_chunks


def safe_formats() -> list[str]:
    """Return the formats that Pillow decodes by itself. Without this list it takes any that matches a file's content.

    Left out: EPS, for which it starts a program; stubs, which need code from elsewhere; IPTC, which wraps any format;
    MPEG, which it identifies but does not decode.
    """
    Image.init()
    stubs = {
        name
        for name, (factory, _) in Image.OPEN.items()
        if isinstance(factory, type) and issubclass(factory, StubImageFile)
    }
    return [name for name in Image.ID if name not in stubs | {"EPS", "IPTC", "MPEG"}]


@cache
def picture_extensions() -> set[str]:
    """Return the extensions of files of safe_formats(), in lower case and with the dot."""
    formats = set(safe_formats())
    return {extension for extension, name in Image.registered_extensions().items() if name in formats}


def open_image(path: str | Path) -> Image.Image:
    """Open a file of one of safe_formats() as Image.open() does."""
    image = Image.open(without_large_chunks(path) or path, formats=safe_formats())
    # With a file name Pillow would map an uncompressed TIFF, and confuse width and height if its orientation turns it.
    image.filename = ""
    return image
