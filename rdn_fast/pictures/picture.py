"""One picture: file -> pixels and what is known of them -> model -> file. How each kind of picture is treated is in read_picture()'s docstring."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.ExifTags import IFD, Base

from rdn_fast.data.images import open_image
from rdn_fast.errors import one_line
from rdn_fast.pictures import png_tiff16

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}  # we write
_EDGE = {"JPEG": 65_500, "WEBP": 16_383}  # pixels
_TIFF_BYTES = 2**32 - 2**20  # its offsets have 32 bits; a MiB for what is not pixels
_EXIF_BYTES = 65_500  # of a JPEG, whose segments have 65,533
_DPI = {"JPEG": 2**16 - 1, "PNG": 10**8, "TIFF": 2**32 - 1}  # the integers that they are written as end there
_LEVEL = 4  # of zlib: in PNG a hundredth larger than Pillow's 6, in 0.4 of the time
# What is said of a picture, not of its file's layout: DocumentName .. HostComputer, ratings, Copyright, Exif and GPS, Windows' XP*.
_EXIF = {269, 270, 271, 272, 305, 306, 315, 316, 18246, 18249, 33432, IFD.Exif, IFD.GPSInfo, *range(40091, 40096)}


@dataclass
class Picture:
    """pixels: uint8 or uint16 [H, W, C], C being 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha), upright.

    dpi: horizontal and vertical; notes: what of the file could not be kept, in words.
    """

    pixels: np.ndarray
    exif: Image.Exif
    icc_profile: bytes | None
    dpi: tuple[float, float] | None
    notes: list[str] = field(default_factory=list)


def read_picture(source: str | Path | Image.Image, max_pixels: int = 0) -> Picture:
    """Any picture that Pillow reads, the first frame or page of several.

    1 bit and grey -> grey; palette, CMYK (by its ICC profile where it has one) and whatever else has colours -> RGB; transparency of
    any kind -> alpha. 16 bits stay 16 in grey pictures of any format, in colour ones in PNG and TIFF files, and in grey ones with alpha
    in PNG files (Pillow opens no such TIFF); where those of a TIFF become 8 (CMYK), a note says so. 32-bit integers are taken as 16 bits
    where they all lie in 0..65535. The EXIF orientation is applied.
    Raises ValueError with the reason in one line: not a picture, of a format for which Pillow starts a program (EPS), damaged, more than
    `max_pixels` (0: no limit), float pixels.
    """
    try:
        if isinstance(source, Image.Image):
            return _picture(source, None)
        with open_image(source) as image:
            if max_pixels and image.width * image.height > max_pixels:
                size = f"{image.width}x{image.height} pixels"
                raise ValueError(
                    f"{size} are more than --max-pixels {max_pixels}, as files made to exhaust the memory have; give a larger one if you trust it"
                )
            several = image.format != "MPO" and getattr(image, "n_frames", 1)  # MPO: a photograph with its previews
            picture = _picture(image, png_tiff16.read_deep(source, image))
            if image.format == "TIFF" and 16 in image.tag_v2.get(258, ()) and picture.pixels.dtype == np.uint8:
                picture.notes.append("16 bits read as 8: Pillow keeps no more of such a TIFF")
            if several > 1:
                picture.notes.append(f"the first of its {several} pictures")
            return picture
    except UnidentifiedImageError:
        raise ValueError("not a picture of a kind that Pillow reads") from None
    except OSError as error:
        raise ValueError(error.strerror or one_line(error)) from None
    except Exception as error:  # Pillow raises nearly anything for a broken file
        raise ValueError(one_line(error)) from None


def _picture(image: Image.Image, deep: np.ndarray | None) -> Picture:
    exif, unread = _kept_exif(image)
    icc_profile, dpi = image.info.get("icc_profile"), image.info.get("dpi")
    if deep is None:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "CMYK":
            upright, icc_profile = _to_srgb(upright, icc_profile), None
        deep = _pixels(upright)
        if image.mode.startswith("I;16") and image.format == "TIFF" and image.tag_v2.get(262) == 0:
            deep = 65535 - deep  # 0 is white, which Pillow minds where there are 8 bits only
    key = image.info.get("transparency")
    if key is not None and deep.dtype == np.uint16:  # the one colour that is transparent
        deep = np.dstack([deep, np.where((deep == key).all(axis=2), 0, 65535).astype(np.uint16)])
    if 0 in deep.shape:
        raise ValueError("it has no pixels")
    stated = image.format != "TIFF" or 282 in image.tag_v2  # without a resolution Pillow says 1 DPI
    known = dpi is not None and stated and all(isfinite(dots) and dots > 0 for dots in dpi)
    return Picture(deep, exif, icc_profile, tuple(map(float, dpi)) if known else None, unread)


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise ValueError("float pixels have no defined range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        grey = np.array(image)[..., None]
        if grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
            raise ValueError("32-bit pixels outside 0..65535 have no defined range; save it with 8 or 16 bits")
        return grey.astype(np.uint16)
    mode = ("L" if image.mode in ("1", "L", "LA", "La") else "RGB") + "A" * image.has_transparency_data
    pixels = np.array(image.convert(mode))
    return pixels[..., None] if mode == "L" else pixels


def _to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    if icc_profile:
        try:
            return ImageCms.profileToProfile(
                image, io.BytesIO(icc_profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except ImageCms.PyCMSError:  # damaged, or not for CMYK
            pass
    return image.convert("RGB")


def _kept_exif(image: Image.Image) -> tuple[Image.Exif, list[str]]:
    """What of the picture's EXIF is true of the result, too; and a note when it cannot be read."""
    kept = Image.Exif()
    try:
        found = image.getexif()
        for tag in _EXIF & set(found):
            if tag in (IFD.Exif, IFD.GPSInfo):
                kept.get_ifd(tag).update(
                    {key: value for key, value in found.get_ifd(tag).items() if key != IFD.Interop}
                )
                kept[tag] = kept.get_ifd(tag)
            else:
                kept[tag] = found[tag]
        kept.tobytes()
    except Exception:  # nearly anything, as above
        return Image.Exif(), ["its EXIF data is damaged and left out"]
    return kept, []


def fit(picture: Picture, scale: int, format: str | None) -> Picture:
    """The picture as `format` (None: a PIL.Image) can hold it `scale` times as large; what that loses is noted. ValueError when it is too large."""
    height, width = (scale * edge for edge in picture.pixels.shape[:2])
    as_colours = _as_colours(picture.pixels, format)
    too_large = (
        scale**2 * picture.pixels.nbytes * (1 + as_colours) > _TIFF_BYTES
        if format == "TIFF"
        else max(height, width) > _EDGE.get(format, 2**31 - 1)
    )
    if too_large:
        raise ValueError(f"{width}x{height} pixels of the result are more than {format} files hold; give --ext png")
    pixels, notes = picture.pixels, [*picture.notes]
    channels = pixels.shape[2]
    if pixels.dtype == np.uint16 and (format in _EDGE or (format is None and channels > 1)):
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
        notes.append(f"16 bits reduced to the 8 that {format or 'a PIL.Image'} holds")
    if format == "JPEG" and channels in (2, 4):
        colours, alpha = pixels[..., :-1].astype(np.uint32), pixels[..., -1:].astype(np.uint32)
        pixels = ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        notes.append("transparency replaced by white: JPEG holds none")
    exif, icc_profile, dpi = picture.exif, picture.icc_profile, picture.dpi
    if format == "JPEG" and len(exif.tobytes()) > _EXIF_BYTES:
        exif = Image.Exif()
        notes.append("its EXIF data is left out: it is larger than a JPEG holds")
    if icc_profile and icc_profile[16:20] == b"GRAY" and (as_colours or format == "WEBP"):
        icc_profile = None
        notes.append(f"its ICC profile is left out: it is of grey, which {format} holds as colours")
    if dpi and max(dpi) > _DPI.get(format, inf):
        dpi = None
        notes.append(f"its DPI are left out: they are more than {format} holds")
    return Picture(pixels, exif, icc_profile, dpi, notes)


def _as_colours(pixels: np.ndarray, format: str | None) -> bool:
    """Whether grey is written three times: of a TIFF with 16 bits of grey and of alpha Pillow could not read."""
    return format == "TIFF" and pixels.dtype == np.uint16 and pixels.shape[2] == 2


def enlarge(picture: Picture, upscaler: Callable[[np.ndarray], np.ndarray]) -> Picture:
    """The picture through the model: a grey one, and alpha, as RGB whose channels' mean is taken; constant alpha stays as it is."""
    pixels = picture.pixels
    channels = pixels.shape[2]
    large = upscaler(pixels[..., :3]) if channels > 2 else _grey(pixels[..., :1], upscaler)
    height, width = large.shape[:2]
    if channels in (2, 4):
        alpha = pixels[..., -1:]
        large = np.concatenate(
            [large, _grey(alpha, upscaler) if model_passes(picture) > 1 else np.full((height, width, 1), alpha[0, 0])],
            axis=2,
        )
    sizes = picture.exif.get(IFD.Exif, {})
    sizes.update(
        {tag: edge for tag, edge in ((Base.ExifImageWidth, width), (Base.ExifImageHeight, height)) if tag in sizes}
    )
    return replace(picture, pixels=large)


def model_passes(picture: Picture) -> int:
    """How often enlarge() asks the model: once more for alpha that is not constant."""
    alpha = picture.pixels[..., -1]
    return 1 + (picture.pixels.shape[2] in (2, 4) and bool(alpha.min() < alpha.max()))


def _grey(plane: np.ndarray, upscaler: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:  # [H, W, 1] -> [s*H, s*W, 1]
    large = upscaler(np.repeat(plane, 3, axis=2))
    return np.rint(large.mean(axis=2, keepdims=True, dtype=np.float32)).astype(plane.dtype)


def to_image(picture: Picture) -> Image.Image:
    """A picture of 8 bits, or of 16 and grey, as PIL.Image of mode L, LA, RGB, RGBA or I;16; profile, EXIF and DPI are in its info."""
    image = Image.fromarray(_squeezed(picture.pixels))
    image.info.update(_metadata(picture))
    if "exif" in image.info:
        image.info["exif"] = image.info["exif"].tobytes()
    return image


def encode(picture: Picture, format: str) -> bytes:
    """The file's content, of a picture that fits. JPEG at quality 95 without chroma subsampling, WebP at 95; PNG and TIFF lose nothing."""
    metadata = _metadata(picture)
    if format == "TIFF":
        pixels = picture.pixels[..., [0, 0, 0, 1]] if _as_colours(picture.pixels, format) else picture.pixels
        return png_tiff16.encode_tiff(pixels, _LEVEL, **metadata)
    if "exif" in metadata:
        metadata["exif"] = metadata["exif"].tobytes()
    if format == "PNG" and picture.pixels.dtype == np.uint16:
        return png_tiff16.encode_png(picture.pixels, _LEVEL, **metadata)
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}, "PNG": {"compress_level": _LEVEL}}[
        format
    ]
    file = io.BytesIO()
    Image.fromarray(_squeezed(picture.pixels)).save(file, format, **options, **metadata)
    return file.getvalue()


def _metadata(picture: Picture) -> dict:
    known = {"icc_profile": picture.icc_profile, "exif": picture.exif, "dpi": picture.dpi}
    return {name: value for name, value in known.items() if value}


def _squeezed(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels
