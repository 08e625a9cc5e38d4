"""An opened file or a PIL.Image -> pixels. The one decoder: upscale, prepare, train and eval see the same pixels."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.ExifTags import Base

from rdn_fast.data.deep_pixels import raw_mode, read_deep
from rdn_fast.data.image_formats import upright
from rdn_fast.data.png_chunks import read_profile
from rdn_fast.errors import one_line

_SIGNED = 2  # of the TIFF tag SampleFormat


class Decoded(NamedTuple):
    """pixels: uint8 or uint16 [H, W, C], upright; C: 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).

    icc_profile: of these pixels. notes: in words, what of the file's pixels could not be kept.
    """

    pixels: np.ndarray
    icc_profile: bytes | None
    notes: list[str]


def decode(image: Image.Image, path: str | Path | None = None) -> Decoded:
    """Decode an image that was opened from `path` and is not loaded yet, or any PIL.Image; of several frames the first.

    - 1 bit and grey become grey. Palettes, CMYK (through its ICC profile where it has one) and all other colours become
      RGB. Transparency of any kind becomes alpha.
    - 10 to 16 bits become 16: in grey pictures of any format; with a path also in colours in PNG and TIFF files, and in
      grey with alpha in PNG files (Pillow opens no such TIFF). A note says where 16 bits of a TIFF become 8 (CMYK).
    - 32-bit integers are taken as 16 bits where all lie in 0..65535.
    - The EXIF orientation is applied.

    Raises ValueError for pixels without a defined range (floats, signed or large integers) and for none at all, and
    what Pillow raises for damaged files, which is nearly anything (see `one_line_errors`).
    """
    raw = raw_mode(image)
    pixels = None if path is None else read_deep(path, image)
    if pixels is None:
        image.load()  # getexif() loads some formats, too, but swallows the errors of damaged pixels
        pixels = _pixels(_without_cmyk(upright(_with_scaled_key(image, raw))))
    if image.format == "TIFF":
        pixels = _by_tags(pixels, image)
    key = image.info.get("transparency")
    if key is not None and pixels.dtype == np.uint16:  # key: the one transparent colour
        pixels = np.dstack([pixels, np.where((pixels == key).all(axis=2), 0, 65535).astype(np.uint16)])
    if 0 in pixels.shape:
        raise ValueError("it has no pixels")
    notes = []
    bits = _bits(image, path)
    if bits > 8 and pixels.dtype == np.uint8:
        notes.append(f"{bits} bits read as 8: Pillow keeps no more of such {image.format} files")
    elif image.format == "HEIF" and bits > 8:
        pixels = np.rint(pixels / (65536 - 2 ** (16 - bits)) * 65535).astype(np.uint16)  # the lowest bits are zero
    icc_profile = None if image.mode == "CMYK" else image.info.get("icc_profile")
    if image.format == "PNG" and path is not None and not icc_profile:
        icc_profile = read_profile(path)  # Pillow takes no large one
    if icc_profile and icc_profile[16:20] not in ((b"RGB ",) if pixels.shape[2] > 2 else (b"RGB ", b"GRAY")):
        space = icc_profile[16:20].decode("ascii", "replace").strip()
        notes.append(f"its ICC profile is left out: it is of {space or 'nothing'}, which the result's pixels are not")
        icc_profile = None
    return Decoded(pixels, icc_profile, notes)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn everything that Pillow raises for a file that it cannot read into a ValueError with the reason in a line."""
    try:
        yield
    except UnidentifiedImageError:
        raise ValueError("not a picture of a kind that Pillow reads") from None
    except OSError as error:
        raise ValueError(error.strerror or one_line(error)) from None
    except Exception as error:
        raise ValueError(one_line(error)) from None


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Round uint16 pixels to uint8; others are returned as they are."""
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _bits(image: Image.Image, path: str | Path | None) -> int:
    """Return the bits of a sample of a TIFF with 16, an AVIF or HEIF; 0 for others."""
    if image.format == "TIFF":
        return 16 if 16 in image.tag_v2.get(Base.BitsPerSample, ()) else 0
    if image.format == "HEIF":
        return image.info.get("bit_depth", 0)
    if image.format == "AVIF" and path is not None:
        with open(path, "rb") as file:
            _, _, configuration = file.read(65_536).partition(b"av1C")
        if len(configuration) > 2 and configuration[2] & 0x40:
            return 12 if configuration[2] & 0x20 else 10
    return 0


def _pixels(image: Image.Image) -> np.ndarray:
    """Return the pixels [H, W, C] of an upright image, in the range of its file."""
    if image.mode == "F":
        raise ValueError("float pixels have no defined range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        grey = np.array(image)[..., None]
        if grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
            raise ValueError("integers outside 0..65535 have no defined range; save it with 8 or 16 bits")
        return grey.astype(np.uint16)
    mode = ("L" if image.mode in ("1", "L", "LA", "La") else "RGB") + "A" * image.has_transparency_data
    pixels = np.array(image.convert(mode))
    return pixels[..., None] if mode == "L" else pixels


def _by_tags(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    """Apply what a TIFF's tags say of its grey values and Pillow leaves undone: 12 bits, signs, white as zero."""
    bits = image.tag_v2.get(Base.BitsPerSample, (1,))[0]
    if bits in (8, 16) and _SIGNED in image.tag_v2.get(Base.SampleFormat, ()):
        raise ValueError("signed pixels have no defined range; save it with 8 or 16 bits, unsigned")
    if image.mode.startswith("I;16"):
        if bits < 16:
            white = 2**bits - 1
            pixels = ((pixels.astype(np.uint32) * 65535 + white // 2) // white).astype(np.uint16)
        if image.tag_v2.get(Base.PhotometricInterpretation) == 0:
            pixels = 65535 - pixels  # Pillow inverts 8 bits by itself
    return pixels


def _with_scaled_key(image: Image.Image, raw: str) -> Image.Image:
    """Return the image with its transparent grey value scaled as its pixels are: Pillow makes 8 bits of 2 and 4."""
    key = image.info.get("transparency")
    if image.format == "PNG" and raw in ("L;2", "L;4") and isinstance(key, int):
        image = image.copy()
        image.info["transparency"] = key * 255 // (2 ** int(raw[2:]) - 1)
    return image


def _without_cmyk(image: Image.Image) -> Image.Image:
    """Return a CMYK image as sRGB, by its ICC profile where it has one that serves; others as they are."""
    if image.mode != "CMYK":
        return image
    if icc_profile := image.info.get("icc_profile"):
        try:
            profile, srgb = io.BytesIO(icc_profile), ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
        except ImageCms.PyCMSError:  # damaged, or not for CMYK
            pass
    return image.convert("RGB")
