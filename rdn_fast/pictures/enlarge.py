"""A picture through the model: borders by reflection, neutral stays neutral, invisible pixels bleed no colour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter
from PIL.ExifTags import IFD, Base

from rdn_fast.pictures.metadata import resized
from rdn_fast.pictures.picture import Picture

# LR pixels by which a picture is continued, by reflection. Convolutions see zeros beyond it: without, flat colours are
# up to 38 levels off at the border, with 2 pixels 3 levels, with 4 pixels 2 (the small x2 model).
_FRAME = 4
_DEEP = 3  # LR pixels: what is so far inside an area is set to the area's own alpha, or to grey
_ROWS = 64  # changed at a time, so that a large picture is not in memory several times

Model = Callable[[np.ndarray], np.ndarray]  # [H, W, 3] -> [s*H, s*W, 3], of the same dtype


def enlarge(picture: Picture, upscaler: Model) -> Picture:
    """Return the picture with its pixels through `upscaler`.

    - The picture is continued by reflection, so that the zeros beyond a border do not darken it.
    - Grey, and alpha, pass as RGB with three equal channels; the mean of the result's is taken. So it is in colour
      pictures where all pixels around are grey.
    - Under alpha 0 the colours of the nearest visible pixels are continued: invisible ones are no part of the picture.
    - Deep inside opaque and inside invisible areas alpha stays what it is. Constant alpha is copied.
    """
    pixels = continue_visible(picture).pixels
    colours, alpha = (pixels[..., :-1], pixels[..., -1]) if pixels.shape[2] in (2, 4) else (pixels, None)
    framed = _framed(upscaler)
    large = _colours(colours, framed) if colours.shape[2] == 3 else _plane(colours, framed)
    if alpha is not None:
        constant = model_passes(picture) == 1
        large_alpha = np.full((*large.shape[:2], 1), alpha[0, 0]) if constant else _alpha(alpha, framed)
        large = np.concatenate([large, large_alpha], axis=2)
    return with_pixels(picture, large)


def with_pixels(picture: Picture, pixels: np.ndarray) -> Picture:
    """Return the picture with other pixels, and their size where EXIF, XMP and a georeference state one."""
    height, width = pixels.shape[:2]
    tags = picture.exif.get(IFD.Exif, {})
    sizes = {Base.ExifImageWidth: width, Base.ExifImageHeight: height}
    tags.update({tag: edge for tag, edge in sizes.items() if tag in tags})
    extras = resized(picture.extras, picture.size, (width, height))
    return replace(picture, pixels=pixels, extras=extras)


def model_passes(picture: Picture) -> int:
    """Return how often enlarge() calls the model: twice where there is alpha that is not constant, else once."""
    alpha = picture.pixels[..., -1]
    return 1 + (picture.pixels.shape[2] in (2, 4) and bool(alpha.min() < alpha.max()))


def _framed(upscaler: Model) -> Model:
    """Return the model for pictures that are continued by reflection; what lies beyond is cut off again."""

    def run(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        large = upscaler(np.pad(image, ((_FRAME, _FRAME), (_FRAME, _FRAME), (0, 0)), "reflect"))
        scale = large.shape[0] // (height + 2 * _FRAME)
        return large[scale * _FRAME :, scale * _FRAME :][: scale * height, : scale * width]

    return run


def _colours(colours: np.ndarray, upscaler: Model) -> np.ndarray:
    """colours: [H, W, 3] -> [s*H, s*W, 3], grey deep inside areas of grey."""
    large = upscaler(colours)
    grey = _deep_inside(colours.min(axis=2) == colours.max(axis=2))
    scale = len(large) // len(colours)
    for top in range(0, len(grey), _ROWS):
        rows = _repeated(grey[top : top + _ROWS], scale)
        if rows.any():
            of_large = large[scale * top :][: len(rows)]
            of_large[rows] = _means(of_large[rows])
    return large


def _plane(plane: np.ndarray, upscaler: Model) -> np.ndarray:
    """plane: [H, W, 1] -> [s*H, s*W, 1]."""
    return _means(upscaler(np.repeat(plane, 3, axis=2)))


def _alpha(alpha: np.ndarray, upscaler: Model) -> np.ndarray:
    """alpha: [H, W] -> [s*H, s*W, 1]; deep inside areas of alpha 0 or of full alpha it is what it was."""
    large = _plane(alpha[..., None], upscaler)
    for value in (0, np.iinfo(alpha.dtype).max):
        large[_repeated(_deep_inside(alpha == value), len(large) // len(alpha))] = value
    return large


def _means(large: np.ndarray) -> np.ndarray:
    """Return the rounded means of the last axis, which is kept with length 1."""
    return np.rint(large.mean(axis=-1, keepdims=True, dtype=np.float32)).astype(large.dtype)


def _deep_inside(area: np.ndarray) -> np.ndarray:
    """area: bool [H, W] -> whether all pixels at most _DEEP away are in the area."""
    if not area.any() or area.all():
        return area
    mask = Image.fromarray(area.astype(np.uint8))
    for _ in range(_DEEP):
        mask = mask.filter(ImageFilter.MinFilter(3))
    return np.asarray(mask) > 0


def _repeated(mask: np.ndarray, scale: int) -> np.ndarray:
    return mask.repeat(scale, axis=0).repeat(scale, axis=1)


def continue_visible(picture: Picture) -> Picture:
    """Return the picture with the colours of invisible pixels replaced by a smooth continuation of the visible ones."""
    if model_passes(picture) == 1:
        return picture
    colours, visible = picture.pixels[..., :-1], picture.pixels[..., -1] > 0
    if visible.all():
        return picture
    weighted = [Image.fromarray(np.where(visible, plane, 0).astype(np.float32)) for plane in np.moveaxis(colours, 2, 0)]
    everywhere = _weighted_means(weighted, Image.fromarray(visible.astype(np.float32)))
    continued = np.rint(np.dstack(everywhere)).astype(colours.dtype)
    colours = np.where(visible[..., None], colours, continued)
    return replace(picture, pixels=np.dstack([colours, picture.pixels[..., -1]]))


def _weighted_means(planes: list[Image.Image], weight: Image.Image) -> list[np.ndarray]:
    """Return planes / weight, float32 [H, W]; where the weight is 0, the means around, from smaller and smaller copies.

    planes, weight: of mode F and one size; the weight is not 0 everywhere.
    """
    weights = np.asarray(weight)
    means = [np.asarray(plane) / np.where(weights > 0, weights, 1) for plane in planes]
    if (weights > 0).all():
        return means
    coarse = _weighted_means([plane.reduce(2) for plane in planes], weight.reduce(2))
    around = (Image.fromarray(plane).resize(weight.size, Image.Resampling.BILINEAR) for plane in coarse)
    return [np.where(weights > 0, mean, np.asarray(other)) for mean, other in zip(means, around, strict=True)]
