"""LR/HR pairs: the reference's five crops of an image, and LR made by Pillow's bicubic."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image


class Pair(NamedTuple):
    """lr: uint8 [h, w, 3], hr: uint8 [scale*h, scale*w, 3], RGB."""

    name: str
    lr: np.ndarray
    hr: np.ndarray


def five_crops(image: np.ndarray) -> list[np.ndarray]:
    """The half-size crops at the four corners and the centre of image [H, W, 3], as the reference takes them."""
    h, w = image.shape[0] // 2, image.shape[1] // 2
    bottom, right = image.shape[0] - h, image.shape[1] - w
    corners = (0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))
    return [image[top : top + h, left : left + w] for top, left in corners]


def degrade(name: str, image: np.ndarray, scale: int, compat: bool = False) -> Pair:
    """image uint8 [H, W, 3] -> its pair: HR cropped (with `compat` resized, as yjn870's code does) to multiples of scale."""
    h, w = image.shape[0] // scale, image.shape[1] // scale
    if h == 0 or w == 0:
        raise ValueError(f"{image.shape[1]}x{image.shape[0]} pixels are too small for x{scale}")
    if compat:
        hr = Image.fromarray(image).resize((w * scale, h * scale), Image.Resampling.BICUBIC)
    else:
        hr = Image.fromarray(np.ascontiguousarray(image[: h * scale, : w * scale]))
    return Pair(name, np.asarray(hr.resize((w, h), Image.Resampling.BICUBIC)), np.asarray(hr))
