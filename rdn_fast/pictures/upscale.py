"""rdn_fast.upscale: one picture, from Python."""

from __future__ import annotations

import os
import threading
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from rdn_fast.pictures.picture import enlarge, fit, read_picture, to_image
from rdn_fast.pictures.tiled import Upscaler
from rdn_fast.weights.convert import SHIPPED, load_model

_one_at_a_time = threading.Lock()


def upscale(
    image: Image.Image | str | Path | np.ndarray,
    weights: RDN | str | Path | None = None,
    *,
    scale: int | None = None,
    device: str = "auto",
    tile: int | None = None,
    tile_pad: int | str = 10,
    fp32: bool = False,
    self_ensemble: bool = False,
) -> Image.Image:
    """The picture scale times as large, upright, its ICC profile, EXIF and DPI in its `info`.

    image: a file, a PIL.Image, or an array that PIL makes an image of: uint8 [H, W], [H, W, 3] RGB or [H, W, 4] RGBA, or uint16 [H, W].
    The result's mode: L for 1 bit and grey, LA for grey with alpha, RGBA for other pictures with transparency (palettes, too), I;16 for 16-bit
    grey, RGB for all else (palettes; CMYK; 16-bit colours, with 8 bits, for PIL holds no more; the command line keeps 16).

    weights: a file of any RDN (None: the small x2 model that comes with the package), kept for the next call; or an RDN, computed where it is.
    scale: checked against the weights, which know it. tile, tile_pad, fp32, self_ensemble: as in rdn_fast.pictures.tiled.Upscaler.
    Raises UserError, in one line: no picture, no RDN, another scale, a device that is not there, a tile or pad that is no number of pixels.
    """
    name = "the picture" if isinstance(image, (Image.Image, np.ndarray)) else str(image)
    settings = tile, tile_pad, fp32, self_ensemble
    with _one_at_a_time:
        if isinstance(weights, RDN):
            if device != "auto":
                raise UserError(
                    f"device {device}: an RDN computes where it is; leave the device out, or give its weights as a file"
                )
            upscaler = Upscaler(weights, *settings, say=warnings.warn)
        else:
            upscaler = _loaded(*_file(SHIPPED if weights is None else weights), device, settings)
        check_scale(scale, upscaler.scale, "scale")
        try:
            source = Image.fromarray(image) if isinstance(image, np.ndarray) else image
            picture = fit(read_picture(source), upscaler.scale, None)
        except (TypeError, ValueError) as error:  # TypeError: an array that is no picture
            raise UserError(f"{name}: {error}") from None
        return to_image(enlarge(picture, upscaler))


def check_scale(wanted: int | None, scale: int, what: str) -> None:
    if wanted not in (None, scale):
        raise UserError(
            f"{what} {wanted}: these weights are for x{scale}; give {what} {scale} or none, or other weights"
        )


def _file(path: str | Path) -> tuple[str, float]:
    """A file's name and when it was written: training may have written it anew."""
    path = os.path.abspath(path) if path else path  # an empty name is no file's, and not that of the present folder
    return path, os.path.getmtime(path) if os.path.exists(path) else 0.0


@lru_cache(maxsize=4)
def _loaded(path: str, _written: float, device: str, settings: tuple) -> Upscaler:
    return Upscaler(load_model(path, device), *settings, say=warnings.warn)
