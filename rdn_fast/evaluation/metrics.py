"""PSNR and SSIM on the luma channel, in the field's convention and in the reference's, and PSNR of RGB.

Canonical (the field's): the prediction is rounded to uint8, Y = 16 + (65.738 R + 129.057 G + 25.064 B)/256, `scale`
pixels are cropped from each border, one value per image, then the mean over images.
Reference-compatible (printed by yjn870's code and the Ascend port): nothing is rounded, and red weighs 64.738, a typo
there. Gives about 0.05 dB more near 38 dB.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np

_CANONICAL = np.array([65.738, 129.057, 25.064]) / 256
_COMPATIBLE = np.array([64.738, 129.057, 25.064]) / 256
_BAND = 64  # rows of an image that are floats at a time


def to_uint8(rgb: np.ndarray) -> np.ndarray:
    """Round and clip float in 0..255 to uint8. uint8 stays as it is."""
    return _rounded(rgb).astype(np.uint8)


def psnr_y(prediction: np.ndarray, hr: np.ndarray, scale: int) -> float:
    """Return canonical PSNR in dB; inf for equal images.

    prediction: [H, W, 3], uint8, or float in 0..255, which is rounded here. hr: uint8 [H, W, 3].
    """
    return psnr(squared_error_y(prediction, hr, scale))


def squared_error_y(prediction: np.ndarray, hr: np.ndarray, scale: int) -> np.ndarray:
    """Return the squared errors per pixel of canonical PSNR: float64 [H - 2*scale, W - 2*scale]. As psnr_y()."""
    return _squared(_luma(prediction, _CANONICAL, scale, _rounded), _luma(hr, _CANONICAL, scale))


def psnr_y_compat(prediction: np.ndarray, hr: np.ndarray, scale: int) -> float:
    """Return reference-compatible PSNR in dB; inf for equal images.

    prediction: [H, W, 3], uint8, or float in 0..255, which is clipped but not rounded. hr: uint8 [H, W, 3].
    """
    return psnr(_squared(_luma(prediction, _COMPATIBLE, scale, _clipped), _luma(hr, _COMPATIBLE, scale)))


def psnr_rgb(prediction: np.ndarray, hr: np.ndarray, scale: int) -> float:
    """Return PSNR of all three channels together, rounded and cropped as psnr_y()'s, in dB; inf for equal images."""
    inner, total = np.s_[scale:-scale, scale:-scale], 0.0
    prediction, hr = prediction[inner], hr[inner]
    for top in range(0, len(hr), _BAND):
        rows = slice(top, top + _BAND)
        total += float(np.square(_rounded(prediction[rows].astype(np.float64)) - hr[rows]).sum())
    return psnr(np.array(total / hr.size))


def psnr(squared_error: np.ndarray) -> float:
    """Return PSNR in dB of any pixels with these squared errors, for a peak of 255; inf if all are 0."""
    mse = np.mean(squared_error)
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))


def mean(values: Iterable[float]) -> float:
    """Return the mean of an image set's values without those that are inf; inf where all are. NaN stays NaN.

    An image that equals its HR image has an infinite PSNR, which says nothing about the others.
    """
    counted = [value for value in values if value != math.inf]
    return float(np.mean(counted)) if counted else math.inf


def ssim_y(prediction: np.ndarray, hr: np.ndarray, scale: int) -> float:
    """Return canonical SSIM (Wang et al., 2004; 11x11 Gaussian window, sigma 1.5). Arguments as of psnr_y().

    It is the mean over all windows inside the cropped image, at least 11 pixels in both directions.
    """
    a, b = _luma(prediction, _CANONICAL, scale, _rounded), _luma(hr, _CANONICAL, scale)
    return float(ssim_map(a, b).mean())


def ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return SSIM of every 11x11 window that lies inside: float [H, W] in 0..255 -> [H - 10, W - 10]."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b, cov = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2, _blur(a * b) - mean_a * mean_b
    return (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def luma(rgb: np.ndarray) -> np.ndarray:
    """Return canonical Y of uint8 [H, W, 3]: float64 [H, W]."""
    return _luma(rgb, _CANONICAL, 0)


def luma_compat(rgb: np.ndarray) -> np.ndarray:
    """Return reference-compatible Y of uint8 [H, W, 3]: float64 [H, W]."""
    return _luma(rgb, _COMPATIBLE, 0)


def smallest_side(scale: int) -> int:
    """Return the smallest HR edge, in pixels, that has room for an SSIM window inside the cropped borders."""
    return 11 + 2 * scale


def _clipped(rgb: np.ndarray) -> np.ndarray:
    return np.clip(rgb, 0, 255)


def _rounded(rgb: np.ndarray) -> np.ndarray:
    return np.rint(_clipped(rgb))  # NaN stays NaN: a broken prediction must not get a PSNR


def _luma(rgb: np.ndarray, weights: np.ndarray, crop: int, prepare: Callable = np.asarray) -> np.ndarray:
    """Return Y of prepare(rgb), [H, W, 3] -> [H - 2*crop, W - 2*crop], without more memory than for that."""
    inner = rgb[crop : rgb.shape[0] - crop, crop : rgb.shape[1] - crop]
    luma = np.empty(inner.shape[:2])
    for top in range(0, len(inner), _BAND):
        rows = slice(top, top + _BAND)
        luma[rows] = 16 + prepare(inner[rows]).astype(np.float64) @ weights
    return luma


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return (a - b)**2, in the place of a."""
    a -= b
    a *= a
    return a


def _blur(image: np.ndarray) -> np.ndarray:
    """Return the Gaussian-weighted mean of every 11x11 window that lies inside: [H, W] -> [H - 10, W - 10]."""
    window = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window /= window.sum()
    for axis in (0, 1):
        image = np.lib.stride_tricks.sliding_window_view(image, 11, axis=axis) @ window
    return image
