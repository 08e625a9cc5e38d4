"""A picture as a file (fit, encode) or as a PIL.Image (to_image), and what each format can hold."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from math import inf

import numpy as np
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from rdn_fast.data.decode import to_8_bits
from rdn_fast.pictures import png_tiff16
from rdn_fast.pictures.formats import LONGEST_EDGE, LOSSY
from rdn_fast.pictures.metadata import IPTC_TAG, XMP_KEYWORD, XMP_TAG, Extras, fit_extras
from rdn_fast.pictures.picture import Picture

_TIFF_BYTES = 2**32 - 2**20  # of pixels: offsets have 32 bits, and a MiB is left for the rest of the file
_EXIF_BYTES = 65_500  # of a JPEG, whose segments have 65,533
_LARGEST_DPI = {"JPEG": 2**16 - 1, "PNG": 10**8, "TIFF": 2**32 - 1}  # limits of the integers that the files hold
_IPTC_HEAD = b"Photoshop 3.0\0" + b"8BIM\4\4\0\0"  # resource 0x0404, without a name
_ZLIB_LEVEL = 4  # PNG files a hundredth larger than with Pillow's 6, in 0.4 of the time


def fit(picture: Picture, size: tuple[int, int], format: str | None) -> Picture:
    """Return the picture as a file of `format` (None: a PIL.Image) can hold it, with a note of everything lost.

    Raises ValueError when the format cannot hold a result of `size`, its width and height.
    """
    _check_size(picture.pixels, size, format)
    pixels, notes = picture.pixels, [*picture.notes]
    channels = pixels.shape[2]
    if pixels.dtype == np.uint16 and (format in LOSSY or (format is None and channels > 1)):
        pixels = to_8_bits(pixels)
        notes.append(f"16 bits reduced to the 8 that {format or 'a PIL.Image'} {_holds(format)}")
    if format == "JPEG" and channels in (2, 4):
        colours, alpha = pixels[..., :-1].astype(np.uint32), pixels[..., -1:].astype(np.uint32)
        pixels = ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        notes.append("transparency replaced by white: JPEG holds none")
    exif, icc_profile, dpi = picture.exif, picture.icc_profile, picture.dpi
    if format == "JPEG" and len(exif.tobytes()) > _EXIF_BYTES:
        exif = Image.Exif()
        notes.append("its EXIF data is left out: it is larger than a JPEG holds")
    if icc_profile and icc_profile[16:20] == b"GRAY" and _writes_grey_as_rgb(pixels, format):
        icc_profile = None
        notes.append(f"its ICC profile is left out: it is of grey, which {format} holds as colours")
    if icc_profile and format == "JXL":
        if not _is_srgb(icc_profile):
            notes.append("its ICC profile is left out: pillow-jxl-plugin writes none, and readers take sRGB")
        icc_profile = None
    if dpi and max(dpi) > _LARGEST_DPI.get(format, inf):
        dpi = None
        notes.append(f"its DPI are left out: they are more than {format} holds")
    extras, extra_notes = fit_extras(picture.extras, format, bool(icc_profile))
    notes += extra_notes
    return replace(picture, pixels=pixels, exif=exif, icc_profile=icc_profile, dpi=dpi, notes=notes, extras=extras)


def _check_size(pixels: np.ndarray, size: tuple[int, int], format: str | None) -> None:
    width, height = size
    if format == "TIFF":
        bytes_per_pixel = pixels[0, 0].nbytes * (2 if _writes_grey_as_rgb(pixels, format) else 1)
        too_large = width * height * bytes_per_pixel > _TIFF_BYTES
    else:
        too_large = max(height, width) > LONGEST_EDGE.get(format, 2**31 - 1)
    if too_large:
        raise ValueError(f"{width}x{height} pixels of the result are more than {format} files hold; give --ext png")


def _writes_grey_as_rgb(pixels: np.ndarray, format: str | None) -> bool:
    """Return whether grey is written three times.

    Pillow cannot read a TIFF of 16-bit grey and alpha; WebP has no grey; AVIF and HEIF are written without grey with
    alpha.
    """
    if pixels.shape[2] == 1:
        return format == "WEBP"
    deep = pixels.dtype == np.uint16
    return pixels.shape[2] == 2 and (format == "TIFF" if deep else format in ("WEBP", "AVIF", "HEIF"))


def _holds(format: str | None) -> str:
    """AVIF, HEIF and JPEG XL hold more bits; what writes them here does not."""
    return "is written with" if format in ("AVIF", "HEIF", "JXL") else "holds"


def _is_srgb(icc_profile: bytes) -> bool:
    """Return whether a profile calls itself sRGB, or is what libjxl makes for sRGB."""
    try:
        name = ImageCms.getProfileDescription(io.BytesIO(icc_profile))
    except ImageCms.PyCMSError:  # damaged
        return False
    return "sRGB" in name or "Rel_SRG" in name


def to_image(picture: Picture) -> Image.Image:
    """Return a PIL.Image of mode L, LA, RGB, RGBA or I;16, with ICC profile, EXIF and DPI in its `info`.

    picture: of 8 bits, or of 16 bits and grey without alpha (fit() with format None).
    """
    image = Image.fromarray(_squeezed(picture.pixels))
    image.info.update(_metadata(picture))
    if "exif" in image.info:
        image.info["exif"] = image.info["exif"].tobytes()
    image.info |= {name: value for name in ("xmp", "comment") if (value := getattr(picture.extras, name))}
    return image


def encode(picture: Picture, format: str) -> bytes:
    """Return the content of a file; the picture must fit() the format.

    PNG and TIFF are lossless, WebP and JPEG XL where the picture says so. Others have its quality, and chroma as fine
    as luma where the format has that.
    """
    metadata = _metadata(picture)
    if format == "TIFF":
        as_rgb = _writes_grey_as_rgb(picture.pixels, format)
        pixels = picture.pixels[..., [0, 0, 0, 1]] if as_rgb else picture.pixels
        return png_tiff16.encode_tiff(pixels, _ZLIB_LEVEL, **metadata, tags=_tiff_tags(picture.extras))
    if "exif" in metadata:
        metadata["exif"] = metadata["exif"].tobytes()
    if format == "PNG" and picture.pixels.dtype == np.uint16:
        return png_tiff16.encode_png(picture.pixels, _ZLIB_LEVEL, **metadata, chunks=_png_chunks(picture.extras))
    quality = {"quality": picture.quality}
    options = {
        "JPEG": {**quality, "subsampling": 0},
        "WEBP": {"lossless": True} if picture.lossless else quality,
        "PNG": {"compress_level": _ZLIB_LEVEL, "pnginfo": _png_info(picture.extras)},
        "AVIF": quality if picture.pixels.shape[2] == 1 else {**quality, "subsampling": "4:4:4"},
        "HEIF": {**quality, "chroma": 444},
        "JXL": {"lossless": True} if picture.lossless or picture.quality == 100 else quality,
    }[format]
    if format == "JPEG":
        options["comment"] = picture.extras.comment
        options["extra"] = _iptc_segment(picture.extras.iptc)
    if format != "PNG" and picture.extras.xmp:
        options["xmp"] = picture.extras.xmp
    file = io.BytesIO()
    Image.fromarray(_squeezed(picture.pixels)).save(file, format, **options, **metadata)
    return file.getvalue()


def _tiff_tags(extras: Extras) -> dict[int, bytes | tuple | str]:
    tags = {XMP_TAG: extras.xmp, IPTC_TAG: extras.iptc}
    return {tag: data for tag, data in tags.items() if data} | extras.georeference


def _iptc_segment(iptc: bytes | None) -> bytes:
    """Return the segment of a JPEG that holds IPTC data as Photoshop's resource; empty without data."""
    if not iptc:
        return b""
    data = _IPTC_HEAD + struct.pack(">I", len(iptc)) + iptc + bytes(len(iptc) % 2)
    return b"\xff\xed" + struct.pack(">H", len(data) + 2) + data


def _png_chunks(extras: Extras) -> list[tuple[bytes, bytes]]:
    """Return the chunks of a PNG file that hold the extras, name and data."""
    chunks = list(extras.chunks)
    if extras.comment:
        chunks.append((b"tEXt", b"Comment\0" + extras.comment.replace(b"\0", b"")))
    if extras.xmp:
        chunks.append((b"iTXt", XMP_KEYWORD + bytes(5) + extras.xmp))
    return chunks


def _png_info(extras: Extras) -> PngInfo:
    info = PngInfo()
    for name, data in _png_chunks(extras):
        info.add(name, data)
    return info


def _metadata(picture: Picture) -> dict:
    known = {"icc_profile": picture.icc_profile, "exif": picture.exif, "dpi": picture.dpi}
    return {name: value for name, value in known.items() if value}


def _squeezed(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels
