"""rdn_fast.upscale: up-scale one picture from Python."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from rdn_fast.pictures.encode import fit, to_image
from rdn_fast.pictures.enlarge import enlarge
from rdn_fast.pictures.picture import read_picture
from rdn_fast.pictures.tiled import Upscaler
from rdn_fast.weights.convert import SHIPPED, load_model


class _LoadedUpscalers:
    """The Upscalers of the latest weights files. `lock` is held while one is in use: they are not thread-safe."""

    _KEPT = 4

    def __init__(self):
        self.lock = threading.Lock()
        self._by_key: dict[tuple, Upscaler] = {}  # the least recently used first

    def get(self, path: str | Path, device: str, settings: tuple) -> Upscaler:
        """Return the Upscaler of a file, loaded again when the file has been written since. settings: Upscaler's."""
        path = os.path.abspath(path) if path else path  # abspath("") is the current folder; "" must stay no file
        written = os.path.getmtime(path) if os.path.exists(path) else 0.0
        key = path, written, device, settings
        upscaler = self._by_key.pop(key, None) or Upscaler(load_model(path, device), *settings, say=warnings.warn)
        self._by_key[key] = upscaler
        if len(self._by_key) > self._KEPT:
            del self._by_key[next(iter(self._by_key))]
        return upscaler

    def clear(self) -> None:
        self._by_key.clear()


loaded_upscalers = _LoadedUpscalers()


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
    """Return the picture `scale` times as large, upright, with its ICC profile, EXIF and DPI in its `info`.

    image: a file, a PIL.Image, or an array: uint8 [H, W], [H, W, 3] RGB or [H, W, 4] RGBA, or uint16 [H, W].
    weights: a file of any RDN (None: the shipped small x2 model), kept loaded for the next calls; or an RDN, which
        computes on the device that it is on.
    scale: checked against the weights' own. device: "auto", "cpu", "cuda[:i]" or "npu[:i]".
    tile, tile_pad, fp32, self_ensemble: as of rdn_fast.pictures.tiled.Upscaler.

    Modes of the result: L for 1 bit and grey; LA for grey with alpha; RGBA for other pictures with transparency,
    palettes too; I;16 for 16-bit grey; RGB for everything else, 16-bit colours included, which PIL holds with 8 bits
    only (the command line keeps 16).

    May be called by several threads; they take turns. Raises UserError, in one line: no picture, no RDN, another
    scale, a device that this machine does not have, a tile or pad that is not a number of pixels.
    """
    name = "the picture" if isinstance(image, (Image.Image, np.ndarray)) else str(image)
    settings = tile, tile_pad, fp32, self_ensemble
    with loaded_upscalers.lock:
        if not isinstance(weights, RDN):
            upscaler = loaded_upscalers.get(SHIPPED if weights is None else weights, device, settings)
        elif device == "auto":
            upscaler = Upscaler(weights, *settings, say=warnings.warn)
        else:
            remedy = "leave the device out, or give its weights as a file"
            raise UserError(f"device {device}: an RDN computes where it is; {remedy}")
        check_scale(scale, upscaler.scale, "scale")
        try:
            source = Image.fromarray(image) if isinstance(image, np.ndarray) else image
            picture = fit(read_picture(source), upscaler.scale, None)
        except (TypeError, ValueError) as error:  # TypeError: PIL makes no image of the array
            raise UserError(f"{name}: {error}") from None
        return to_image(enlarge(picture, upscaler))


def check_scale(wanted: int | None, scale: int, what: str) -> None:
    """Raise UserError when a scale is wanted (not None) that is not the weights'. what: the flag or parameter."""
    if wanted not in (None, scale):
        remedy = f"give {what} {scale} or none, or other weights"
        raise UserError(f"{what} {wanted}: these weights are for x{scale}; {remedy}")
