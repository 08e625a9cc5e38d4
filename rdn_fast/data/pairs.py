"""LR/HR pairs: HR images with LR images that are made of them or given, and the five crops that the reference takes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from rdn_fast.data.degradation import PLAIN, Degradation


class Pair(NamedTuple):
    """RGB images. lr: uint8 [h, w, 3]. hr: uint8 [scale*h, scale*w, 3]."""

    name: str
    lr: np.ndarray
    hr: np.ndarray


_MOD = 12  # HR pictures of benchmarks are cropped to multiples of it, whatever the scale: GTmod12


def five_crops(image: np.ndarray) -> list[np.ndarray]:
    """Return the half-size crops of image [H, W, 3] at its four corners and its centre, in the reference's order."""
    return [image[crop] for crop in _five_places(*image.shape[:2], 1)]


def five_crops_of_pair(pair: Pair) -> list[Pair]:
    """Return the five_crops() of the LR image, each with the part of the HR image that it shows."""
    height, width = pair.lr.shape[:2]
    scale = pair.hr.shape[0] // height
    places = zip(*(_five_places(height, width, factor) for factor in (1, scale)), strict=True)
    crops = [Pair(f"{pair.name} (crop {k})", pair.lr[lr], pair.hr[hr]) for k, (lr, hr) in enumerate(places)]
    if 0 in crops[0].lr.shape:
        raise ValueError(f"{width}x{height} LR pixels are too few for crops of half the size")
    return crops


def _five_places(height: int, width: int, factor: int) -> list[tuple[slice, slice]]:
    """Return the rows and columns of the five crops of an image of height x width pixels, enlarged by factor."""
    h, w = height // 2, width // 2
    bottom, right = height - h, width - w
    corners = (0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))
    return [
        (slice(factor * top, factor * (top + h)), slice(factor * left, factor * (left + w))) for top, left in corners
    ]


def degrade(name: str, image: np.ndarray, scale: int, compat: bool = False, degradation: Degradation = PLAIN) -> Pair:
    """Make a pair of image, uint8 [H, W, 3]. HR is cropped (compat: resized, as yjn870's is) to multiples of scale.

    Raises ValueError when the image is too small.
    """
    h, w = image.shape[0] // scale, image.shape[1] // scale
    if h == 0 or w == 0:
        raise ValueError(f"{image.shape[1]}x{image.shape[0]} pixels are too small for x{scale}")
    if compat:
        hr = np.asarray(Image.fromarray(image).resize((w * scale, h * scale), Image.Resampling.BICUBIC))
    else:
        hr = np.ascontiguousarray(image[: h * scale, : w * scale])
    return Pair(name, degradation.shrink(hr, scale), hr)


def join(name: str, lr: np.ndarray, hr: np.ndarray, scale: int) -> Pair:
    """Make a pair of two given images, uint8 [h, w, 3] and [H, W, 3].

    HR must have `scale` times the size of LR exactly, or after a crop to multiples of the scale or of 12, which is made
    at its right and bottom. Raises ValueError with both sizes.
    """
    size = scale * lr.shape[0], scale * lr.shape[1]
    if size not in [tuple(edge - edge % multiple for edge in hr.shape[:2]) for multiple in (scale, _MOD)]:
        sizes = f"{lr.shape[1]}x{lr.shape[0]} pixels, HR {hr.shape[1]}x{hr.shape[0]}"
        raise ValueError(f"{sizes}, which is not {scale} times as large, nor after a crop to multiples of {scale}")
    return Pair(name, lr, np.ascontiguousarray(hr[: size[0], : size[1]]))
