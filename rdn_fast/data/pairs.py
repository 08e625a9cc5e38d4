"""LR/HR pairs: the five crops that the reference takes of an image, and HR images with their LR images."""

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


def five_crops(image: np.ndarray) -> list[np.ndarray]:
    """Return the half-size crops of image [H, W, 3] at its four corners and its centre, in the reference's order."""
    h, w = image.shape[0] // 2, image.shape[1] // 2
    bottom, right = image.shape[0] - h, image.shape[1] - w
    corners = (0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))
    return [image[top : top + h, left : left + w] for top, left in corners]


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
