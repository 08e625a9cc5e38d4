"""MATLAB's imresize of uint8 images: bicubic with antialiasing, its borders, its order of the passes, its rounding.

From its published description: Keys's cubic kernel with a = -0.5 (IEEE Trans. ASSP 29(6), 1981), stretched where an
image shrinks; weights divided by their sum; borders mirrored with the edge pixel repeated. Rows are resized first, then
columns. The result of each pass is rounded to uint8, halves up, as images of that class are stored. One rounding at the
end, which imresize(im2double(image)) amounts to, gives other values in about one of seven places.
Results are those of exact arithmetic: at x2, x4 and x8 weights are multiples of a power of 2, which floats hold; at x3
of 1/81, or 1/27 to enlarge, so that no sum lies nearer to a half than 1/162.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

_BAND = 1 << 16  # values of a pass that are floats at a time: they stay in the processor's cache


def imresize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize image, uint8 [H, W, 3], to uint8 [height, width, 3].

    Raises ValueError when the two edges do not change by the same factor.
    """
    if (factor := Fraction(height, image.shape[0])) != Fraction(width, image.shape[1]):
        raise ValueError(f"{image.shape[1]}x{image.shape[0]} to {width}x{height} changes the shape")
    rows = _resize_rows(image, height, float(factor))
    return _resize_rows(rows.swapaxes(0, 1), width, float(factor)).swapaxes(0, 1)


def _resize_rows(image: np.ndarray, rows: int, factor: float) -> np.ndarray:
    """Resize image, uint8 [N, M, 3], along its first axis -> uint8 [rows, M, 3], contiguous."""
    weights, indices = _contributions(len(image), rows, factor)
    dtype = np.float64 if factor == 1 / 8 else np.float32  # its weights are multiples of 1/65536; float32 is faster
    weights = weights.astype(dtype)
    flat = np.ascontiguousarray(image).reshape(len(image), -1)
    out = np.empty((rows, flat.shape[1]), np.uint8)
    band = max(1, _BAND // flat.shape[1])
    for top in range(0, rows, band):
        of_band = slice(top, top + band)
        total = np.zeros(out[of_band].shape, dtype)
        for weight, index in zip(weights[:, of_band], indices[:, of_band], strict=True):
            total += flat[index] * weight[:, None]
        total += 0.5
        out[of_band] = np.clip(total, 0, 255, out=total)  # the cast cuts off the fraction
    return out.reshape(rows, *image.shape[1:])


def _contributions(length: int, new_length: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (float64) and indices of the pixels that make each new pixel: both [taps, new_length]."""
    stretch = min(factor, 1.0)
    width = 4 / stretch
    centre = np.arange(1, new_length + 1) / factor + 0.5 * (1 - 1 / factor)  # counted from 1
    pixels = np.floor(centre - width / 2) + np.arange(math.ceil(width) + 2)[:, None]
    weights = stretch * _cubic(stretch * (centre - pixels))
    weights /= weights.sum(axis=0)
    mirrored = np.concatenate([np.arange(length), np.arange(length)[::-1]])
    used = weights.any(axis=1)
    return weights[used], mirrored[(pixels[used].astype(np.int64) - 1) % (2 * length)]


def _cubic(x: np.ndarray) -> np.ndarray:
    """Return Keys's kernel, a = -0.5, at x."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0))
