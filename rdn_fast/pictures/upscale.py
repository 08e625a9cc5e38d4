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
from rdn_fast.pictures.picture import read_picture
from rdn_fast.pictures.resize import resize
from rdn_fast.pictures.sizes import MAX_PIXELS, OutputSize
from rdn_fast.pictures.tiled import Upscaler
from rdn_fast.weights.onnx_model import load_any_model
from rdn_fast.weights.shipped import check_scale, file_of, for_each_scale

# dtype and the shape after [H, W]
_ARRAYS = [(np.bool_, ()), *((np.uint8, shape) for shape in ((), (2,), (3,), (4,))), (np.uint16, ())]
_ANY_FACTOR = " (outscale takes any factor)"


class _LoadedUpscalers:
    """The Upscalers of the latest weights files. `lock` is held while one is in use: they are not thread-safe."""

    _KEPT = 4
    _PATIENCE = 30.0  # seconds that a fork waits for a picture

    def __init__(self):
        self.lock = threading.RLock()  # a thread that computes may fork
        self._fork = threading.local()
        self._by_key: dict[tuple, Upscaler] = {}  # the least recently used first

    def get(self, path: str | Path, device: str, settings: tuple) -> Upscaler:
        """Return the Upscaler of a file, loaded again when the file has been written since. settings: Upscaler's."""
        path = os.path.abspath(file_of(path)) if path else path  # abspath("") is the current folder; "" is no file
        written = os.path.getmtime(path) if os.path.exists(path) else 0.0
        key = path, written, repr((device, settings))  # not checked yet: a list has no hash
        if (upscaler := self._by_key.pop(key, None)) is None:
            upscaler = Upscaler(load_any_model(path, device).frozen(), *settings, say=warnings.warn)
        self._by_key[key] = upscaler
        if len(self._by_key) > self._KEPT:
            del self._by_key[next(iter(self._by_key))]
        return upscaler

    def clear(self) -> None:
        self._by_key.clear()

    def before_fork(self) -> None:
        """Wait until no other thread computes: a child would wait for ever for what that thread has locked in torch."""
        self._fork.waited = self.lock.acquire(timeout=self._PATIENCE)

    def after_fork(self) -> None:
        if self._fork.waited:
            self.lock.release()

    def after_fork_in_child(self) -> None:
        if not self._fork.waited:  # the thread that computes is not in the child
            self.lock = threading.RLock()
            self.clear()
        self.after_fork()


loaded_upscalers = _LoadedUpscalers()
if hasattr(os, "register_at_fork"):  # Windows forks nothing
    os.register_at_fork(
        before=loaded_upscalers.before_fork,
        after_in_parent=loaded_upscalers.after_fork,
        after_in_child=loaded_upscalers.after_fork_in_child,
    )


def upscale(
    image: Image.Image | str | Path | np.ndarray,
    weights: RDN | str | Path | None = None,
    *,
    scale: int | None = None,
    outscale: float | None = None,
    width: int | None = None,
    height: int | None = None,
    longest: int | None = None,
    device: str = "auto",
    tile: int | None = None,
    tile_pad: int | str = 10,
    fp32: bool = False,
    self_ensemble: bool = False,
) -> Image.Image:
    """Return the picture larger by the scale, or at the wanted size, upright.

    Its ICC profile, EXIF and DPI are in its `info`.

    image: a file, a PIL.Image, or an array: uint8 [H, W], [H, W, 3] RGB or [H, W, 4] RGBA, or uint16 [H, W].
    weights: a file of any RDN, the name of a shipped model or an ONNX file, kept loaded; or an RDN, which computes on
        the device that it is on. None: the shipped model of the scale.
    scale: checked against that of the weights. None, without weights: 2, or for another size the smallest that reaches
        it in the fewest passes through the model.
    outscale, width, height, longest: another size: a factor; or pixels of the result, both of width and height exactly,
        or the longer edge. The model runs as often as needed, 0 times where nothing grows; then follows one resample.
    device: "auto", "cpu", "cuda[:i]" or "npu[:i]".
    tile, tile_pad, fp32, self_ensemble: as of rdn_fast.pictures.tiled.Upscaler.

    Modes of the result: L for 1 bit and grey; LA for grey with alpha; RGBA for other pictures with transparency,
    palettes too; I;16 for 16-bit grey; RGB for everything else, 16-bit colours included, which PIL holds with 8 bits
    only (the command line keeps 16).

    What the result cannot hold, or the file lacked, is a UserWarning: of several pictures the first, 16 bits to 8,
    damaged EXIF data. May be called by several threads; they take turns. Raises UserError, in one line: no picture, an
    array of another kind, no RDN, another scale, a size that is none or too large, a device that this machine does not
    have, a tile or pad that is not a number of pixels, an argument of another type.
    """
    if not isinstance(image, (Image.Image, np.ndarray, str, os.PathLike)):
        remedy = "a path, a PIL.Image (of an opened file: PIL.Image.open) or a NumPy array (of a tensor: .numpy())"
        raise UserError(f"the picture: give {remedy}; this is of type {type(image).__name__}")
    if not isinstance(weights, (RDN, str, os.PathLike, type(None))):
        raise UserError(f"weights: give a file or an rdn_fast.RDN; this is of type {type(weights).__name__}")
    name = "the picture" if isinstance(image, (Image.Image, np.ndarray)) else str(image)
    settings = tile, tile_pad, fp32, self_ensemble
    wanted = OutputSize(outscale, width, height, longest)
    wanted.check()
    source = _image(image) if isinstance(image, np.ndarray) else image
    shipped = for_each_scale(scale=scale, more=_ANY_FACTOR) if weights is None else {}
    with loaded_upscalers.lock:
        try:
            picture = read_picture(source)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
        if weights is None:
            weights = shipped[wanted.best_scale(*picture.size, shipped)].file
        if not isinstance(weights, RDN):
            upscaler = loaded_upscalers.get(weights, device, settings)
        elif device == "auto":
            upscaler = Upscaler(weights, *settings, say=warnings.warn)
        else:
            remedy = "leave the device out, or give its weights as a file"
            raise UserError(f"device {device}: an RDN computes where it is; {remedy}")
        check_scale(scale, upscaler.scale, "scale", _ANY_FACTOR)
        try:
            steps = wanted.steps(*picture.size, upscaler.scale)
            steps.check(MAX_PIXELS, "the limit of")
            picture = fit(picture, steps.size, None)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
        for note in picture.notes:
            warnings.warn(f"{name}: {note}", stacklevel=2)
        return to_image(resize(picture, steps, upscaler))


def _image(array: np.ndarray) -> Image.Image:
    """Return the array as a PIL.Image. Raises UserError for arrays that are no picture's."""
    kind = array.dtype, array.shape[2:]
    if 0 in array.shape or array.ndim not in (2, 3) or kind not in _ARRAYS:
        given = f"this array is {array.dtype} {list(array.shape)}"
        remedy = "floats in 0..1: (255 * x).round().clip(0, 255).astype(np.uint8)" if array.dtype.kind == "f" else ""
        kinds = "uint8 [H, W], [H, W, 3] or [H, W, 4], or uint16 [H, W]"
        raise UserError(f"the picture: give {kinds}, not empty; {given}" + f"; {remedy}" * bool(remedy))
    return Image.fromarray(array)
