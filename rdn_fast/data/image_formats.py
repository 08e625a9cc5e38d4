"""Which files are opened as pictures, and how."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.ImageFile import StubImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from rdn_fast.data.plugins import missing_plugins, remedy_for_file
from rdn_fast.data.png_chunks import without_large_chunks
from rdn_fast.errors import why_no_file


def safe_formats() -> list[str]:
    """Return the formats that Pillow, or an installed plug-in, decodes. Without this list it takes any that matches.

    Left out: EPS, for which it starts a program; stubs, which need code from elsewhere; IPTC, which wraps any format;
    MPEG, which it identifies but does not decode.
    """
    missing_plugins()
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
    known = {extension for extension, name in Image.registered_extensions().items() if name in formats}
    return known | {".mpo"}  # two photographs in a JPEG; Pillow has no extension for it


def open_image(path: str | Path) -> Image.Image:
    """Open a file of one of safe_formats() as Image.open() does; ValueError with the reason where it could.

    What is no regular file is not opened: a pipe would be waited for.
    """
    if (flaw := why_no_file(path)) is not None:
        raise ValueError(flaw)
    try:
        image = Image.open(without_large_chunks(path) or path, formats=safe_formats())
    except UnidentifiedImageError:
        if remedy := remedy_for_file(path):
            raise ValueError(remedy) from None
        if kind := _kind_of_tiff(path):
            raise ValueError(f"a TIFF that Pillow does not read: {kind}; save it as PNG") from None
        raise
    # With a file name Pillow would map an uncompressed TIFF, and confuse width and height if its orientation turns it.
    image.filename = ""
    return image


def _kind_of_tiff(path: str | Path) -> str:
    """Return how the first picture of a TIFF is stored, in words; "" for other files and for damaged ones."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            directory = ImageFileDirectory_v2(head + (file.read(8) if head[2:3] == b"+" else b""))  # b"+": BigTIFF
            file.seek(directory.next)
            directory.load(file)
            tags = Base.BitsPerSample, Base.SamplesPerPixel, Base.PhotometricInterpretation, Base.Compression
            return ", ".join(f"{tag.name} {directory[tag]}" for tag in tags if tag in directory)
    except Exception:  # Pillow raises nearly anything
        return ""


def upright(image: Image.Image) -> Image.Image:
    """Return a loaded image turned as its EXIF orientation says; as it is where the EXIF data is damaged.

    That of a JPEG XL does not count: an orientation of its own does, which is applied already. It counts again where
    the plug-in has made the JPEG of which the file was made.
    """
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises nearly anything
        return image
