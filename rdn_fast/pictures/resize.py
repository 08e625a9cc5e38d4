"""A picture to the size that is wanted: through the model as often as needed, then one antialiased resample."""

from __future__ import annotations

import numpy as np
from PIL import Image

from rdn_fast.pictures.enlarge import Model, continue_visible, enlarge, with_pixels
from rdn_fast.pictures.picture import Picture
from rdn_fast.pictures.sizes import Steps


def resize(picture: Picture, steps: Steps, upscaler: Model) -> Picture:
    """Return the picture with steps.size pixels.

    Each channel is resampled by itself, with Pillow's antialiased Lanczos filter. Colours below alpha 0 are a smooth
    continuation of the visible ones by then, so none bleeds.
    """
    for _ in range(steps.passes):
        picture = enlarge(picture, upscaler)
    if not steps.is_resampled:
        return picture
    if not steps.passes:
        picture = continue_visible(picture)
    width, height = steps.size
    pixels = np.empty((height, width, picture.pixels.shape[2]), picture.pixels.dtype)
    for channel in range(pixels.shape[2]):
        pixels[..., channel] = _resampled(picture.pixels[..., channel], steps.size)
    return with_pixels(picture, pixels)


def _resampled(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """plane: uint8 or uint16 [H, W]; size: width, height. 16 bits are computed in float32."""
    if plane.dtype == np.uint8:
        return np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.LANCZOS))
    large = np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.LANCZOS))
    return np.rint(large.clip(0, 65535)).astype(np.uint16)
