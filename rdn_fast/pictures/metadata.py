"""What a file says of its picture beside the pixels: what is kept of it, and the words for what is left out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path

from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from rdn_fast.data.png_chunks import read_chunks, unpacked
from rdn_fast.pictures import georeference

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
XMP_TAG, IPTC_TAG = 700, 33723  # of a TIFF
_IPTC_RESOURCE = 0x0404  # in Photoshop's segment of a JPEG
# Tags of a TIFF from 32768 on that are read, or that say how pixels are stored; the registered ones below say no more.
_PRIVATE_TAGS = 32768
_KNOWN_TAGS = {*_EXIF_TAGS, IPTC_TAG, Base.InterColorProfile, *range(32995, 32999), 59932, *georeference.TAGS}
_WORDS_FOR_TAGS = {
    34377: "Photoshop data",
    37724: "Photoshop layers",
    42112: "GDAL metadata",
    42113: "no-data value",
    50844: "RPC coefficients",
}
XMP_KEYWORD = b"XML:com.adobe.xmp"  # of a PNG's iTXt chunk
_TEXTS, _COLOURS = (b"tEXt", b"zTXt", b"iTXt"), (b"gAMA", b"cHRM", b"cICP", b"sRGB")
_EXIF_TEXTS = (b"Raw profile type exif\0", b"Raw profile type APP1\0")  # as ImageMagick writes it
_SRGB_GAMMA = range(45_000, 46_000)  # 100,000 / 2.2
_LARGEST = 65_490  # bytes of XMP or IPTC data in a JPEG, whose segments have 65,533


@dataclass
class Extras:
    """xmp: without the orientation, which is applied. comment: of a JPEG or GIF. chunks: of a PNG, name and data.

    iptc: of a JPEG or TIFF. georeference: tags of a GeoTIFF and their values. left_out: in words, what no format keeps.
    """

    xmp: bytes | None = None
    comment: bytes | None = None
    chunks: list[tuple[bytes, bytes]] = field(default_factory=list)
    iptc: bytes | None = None
    georeference: dict[int, tuple | str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


class _AsRead(str):
    """Text of an EXIF tag, decoded as Latin-1, that Pillow writes with the bytes that were read: most often UTF-8."""

    __slots__ = ()

    def encode(self, *_) -> bytes:
        return super().encode("latin-1")


def kept_exif(image: Image.Image) -> tuple[Image.Exif, list[str]]:
    """Return the picture's EXIF tags that are true of the result, and a note when they cannot be read."""
    kept = Image.Exif()
    try:
        Image.Exif().load(image.info.get("exif", b""))  # getexif() raises at its first call only
        found = image.getexif()
        for tag in _EXIF_TAGS & set(found):
            if tag in (IFD.Exif, IFD.GPSInfo):
                tags = {key: _as_read(value) for key, value in found.get_ifd(tag).items() if key != IFD.Interop}
                kept.get_ifd(tag).update(tags)
                kept[tag] = kept.get_ifd(tag)
            else:
                kept[tag] = _as_read(found[tag])
        kept.tobytes()
    except Exception:  # Pillow raises nearly anything
        return Image.Exif(), ["its EXIF data is damaged and left out"]
    return kept, []


def _as_read(value):
    return _AsRead(value) if isinstance(value, str) else value


def dpi(image: Image.Image) -> tuple[float, float] | None:
    """Return the horizontal and vertical DPI that the file states."""
    stated = image.info.get("dpi")
    if stated is None or not all(isfinite(dots) and dots > 0 for dots in stated):
        return None
    if image.format == "TIFF" and Base.XResolution not in image.tag_v2:  # Pillow then reports 1 DPI
        return None
    return tuple(map(float, stated))


def is_turned(image: Image.Image) -> bool:
    """Return whether the picture is a TIFF stored in another orientation; false once it is loaded, which turns it."""
    return image.format == "TIFF" and image.tag_v2.get(Base.Orientation, 1) != 1


def extras(image: Image.Image, path: str | Path | None, turned: bool) -> Extras:
    """Return what the file holds beside pixels, EXIF, ICC profile and DPI. path: None for a PIL.Image."""
    xmp, comment = image.info.get("xmp"), image.info.get("comment")
    found = Extras(_without_orientation(xmp) if isinstance(xmp, bytes) else None)
    if image.format in ("JPEG", "MPO", "GIF") and comment:
        found.comment = comment if isinstance(comment, bytes) else str(comment).encode()
    if image.format == "PNG" and path is not None:
        for chunk in read_chunks(path, behind_pixels=True):
            if chunk.name == b"iTXt" and chunk.data.startswith(XMP_KEYWORD + b"\0"):
                if text := unpacked(chunk):
                    found.xmp = _without_orientation(text)
            elif chunk.name in (*_TEXTS, *_COLOURS) and not chunk.data.startswith(_EXIF_TEXTS):  # kept_exif() has it
                found.chunks.append((chunk.name, chunk.data))
    photoshop = image.info.get("photoshop")
    if isinstance(photoshop, dict):
        found.iptc = photoshop.get(_IPTC_RESOURCE)
    if image.format == "TIFF":
        _add_tags(found, image.tag_v2, turned)
    return found


def _add_tags(found: Extras, tags: ImageFileDirectory_v2, turned: bool) -> None:
    """Add what a TIFF's own tags hold, and words for those that are left out."""
    found.iptc = tags._tagdata.get(IPTC_TAG)  # bytes, which many programs call integers: Pillow then gives the first
    places = {tag: _as_read(tags[tag]) for tag in sorted(georeference.TAGS & set(tags))}
    if places and (turned or not _can_be_enlarged(places)):
        found.left_out.append("georeference")  # of the stored picture, which is turned; or damaged
    else:
        found.georeference = places
    others = sorted(tag for tag in tags if tag >= _PRIVATE_TAGS and tag not in _KNOWN_TAGS)
    found.left_out += [_WORDS_FOR_TAGS.get(tag, f"TIFF tag {tag}") for tag in others]


def _can_be_enlarged(places: dict[int, tuple | str]) -> bool:
    try:
        georeference.enlarged(places, 1, 1)
    except (TypeError, ValueError):
        return False
    return True


def fit_extras(found: Extras, format: str | None, has_profile: bool) -> tuple[Extras, list[str]]:
    """Return what a file of the format (None: a PIL.Image) holds of the extras, and a note of what is left out."""
    kept, lost = replace(found, left_out=[]), list(found.left_out)
    if format == "JPEG" and len(found.xmp or b"") > _LARGEST:
        kept.xmp = None
        lost.append("XMP data")
    if found.iptc and (format not in ("JPEG", "TIFF") or (format == "JPEG" and len(found.iptc) > _LARGEST)):
        kept.iptc = None
        lost.append("IPTC data")
    if found.georeference and format != "TIFF":
        kept.georeference = {}
        lost.append("georeference")
    if found.comment and format not in ("JPEG", None, "PNG"):
        kept.comment = None
        lost.append("comment")
    if format != "PNG":
        kept.chunks = []
        lost += _words_for(found.chunks, has_profile)
    return kept, [f"left out, {format or 'a PIL.Image'} does not hold it here: its {', '.join(lost)}"] if lost else []


def _words_for(chunks: list[tuple[bytes, bytes]], has_profile: bool) -> list[str]:
    keywords = [data.partition(b"\0")[0].decode("latin-1") for name, data in chunks if name in _TEXTS]
    words = [f"text ({', '.join(keywords)})"] if keywords else []
    gammas = [data for name, data in chunks if name == b"gAMA"]
    names = [name for name, _ in chunks]
    is_srgb = b"sRGB" in names or has_profile or all(int.from_bytes(data) in _SRGB_GAMMA for data in gammas)
    if b"cICP" in names:
        words.append("colour space (cICP)")
    elif not is_srgb:
        words.append("gamma (gAMA)")
    return words


def _without_orientation(xmp: bytes) -> bytes:
    return re.sub(rb'\s*tiff:Orientation="\d*"|<tiff:Orientation>\d*</tiff:Orientation>', b"", xmp)


def resized(extras: Extras, size: tuple[int, int], new_size: tuple[int, int]) -> Extras:
    """Return the extras of a picture, for the picture in another size. size, new_size: width and height in pixels."""
    factors = (new / old for new, old in zip(new_size, size, strict=True))
    placed = georeference.enlarged(extras.georeference, *factors)
    return replace(extras, xmp=_with_size(extras.xmp, *new_size), georeference=placed)


def _with_size(xmp: bytes | None, width: int, height: int) -> bytes | None:
    """Return XMP with the picture's size where it states one."""
    sizes = {
        rb"tiff:ImageWidth|exif:PixelXDimension": width,
        rb"tiff:ImageLength|exif:PixelYDimension": height,
    }
    for names, edge in sizes.items():
        if xmp:
            xmp = re.sub(rb'(%s)(="|>)\d+' % names, rb"\g<1>\g<2>%d" % edge, xmp)
    return xmp
