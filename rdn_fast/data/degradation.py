"""How an LR image is made of an HR image: whose bicubic, and the degradations of the RDN paper's table 2."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rdn_fast.data.imresize import imresize
from rdn_fast.errors import UserError

LR_MADE_BY = "lr_made_by"  # attribute of an h5 file's root: Degradation.in_words
OWNERS = {"pillow": "Pillow's bicubic", "matlab": "MATLAB's bicubic"}
_NOISE = 30  # standard deviation of dn, in levels of 255
_BLUR_EDGE, _BLUR_SIGMA, _BLUR_SCALE = 7, 1.6, 3


@dataclass(frozen=True)
class Degradation:
    """How LR images are made. Raises UserError for values that mean nothing.

    bicubic: "pillow", or "matlab", the field's: imresize of a uint8 image.
    kind: "bi": bicubic alone. "bd": blurred by a 7x7 Gaussian of sigma 1.6, borders repeated, then the middle of every
    3x3 pixels; x3 alone. "dn": bicubic, then Gaussian noise of level 30. "jpeg:LOW-HIGH": bicubic, then JPEG of a
    quality between these.

    Noise and quality depend on the pixels of the LR image alone: a picture has the same in every order, file and run.
    """

    bicubic: str = "pillow"
    kind: str = "bi"

    def __post_init__(self):
        if self.bicubic not in OWNERS:
            raise UserError(f"--bicubic {self.bicubic}: choose pillow or matlab")
        if self.kind not in ("bi", "bd", "dn") and not self._qualities():
            raise UserError(
                f"--degradation {self.kind}: choose bi, bd, dn, or jpeg:LOW-HIGH with qualities from 1 to 100, "
                "as jpeg:30-90"
            )

    @classmethod
    def of_flags(cls, bicubic: str | None, kind: str | None) -> Degradation:
        """Return the degradation of flags, of which None are not given."""
        return cls(bicubic or cls.bicubic, kind or cls.kind)

    def check_scale(self, scale: int) -> None:
        """Raise UserError where the degradation does not exist at this scale."""
        if self.kind == "bd" and scale != _BLUR_SCALE:
            raise UserError(
                f"--degradation bd: x{scale} has no middle pixel, and papers have it at x{_BLUR_SCALE} alone; "
                f"give --scale {_BLUR_SCALE}, or another degradation"
            )

    @property
    def in_words(self) -> str:
        """Return what is said of LR images in tables and files, as "MATLAB's bicubic, noise 30"."""
        if self.kind == "bd":
            return (
                f"{_BLUR_EDGE}x{_BLUR_EDGE} Gaussian blur of sigma {_BLUR_SIGMA}, middle of {_BLUR_SCALE}x{_BLUR_SCALE}"
            )
        after = {"bi": "", "dn": f", noise {_NOISE}"}.get(self.kind, f", JPEG {self.kind.partition(':')[2]}")
        return OWNERS[self.bicubic] + after

    def shrink(self, hr: np.ndarray, scale: int) -> np.ndarray:
        """Make the LR image of hr: uint8 [scale*h, scale*w, 3] -> [h, w, 3]."""
        self.check_scale(scale)
        if self.kind == "bd":
            return _blurred(hr)[_BLUR_SCALE // 2 :: _BLUR_SCALE, _BLUR_SCALE // 2 :: _BLUR_SCALE]
        lr = self.resize(hr, hr.shape[0] // scale, hr.shape[1] // scale)
        if self.kind == "bi":
            return lr
        # RandomState, whose numbers no version of NumPy changes.
        random = np.random.RandomState(np.frombuffer(hashlib.sha256(lr.tobytes()).digest(), "<u4"))
        if self.kind == "dn":
            return np.clip(np.rint(lr + random.normal(0, _NOISE, lr.shape)), 0, 255).astype(np.uint8)
        low, high = self._qualities()
        file = io.BytesIO()
        Image.fromarray(lr).save(file, "JPEG", quality=int(random.randint(low, high + 1)))
        return np.asarray(Image.open(file))

    def resize(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        """Resize image, uint8 [H, W, 3], by the bicubic alone."""
        if self.bicubic == "matlab":
            return imresize(image, height, width)
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))

    def _qualities(self) -> tuple[int, int] | None:
        found = re.fullmatch(r"jpeg:([1-9]\d{0,2})-([1-9]\d{0,2})", self.kind)
        low, high = map(int, found.groups()) if found else (1, 0)
        return (low, high) if low <= high <= 100 else None


PLAIN = Degradation()  # the reference's


def _blurred(image: np.ndarray) -> np.ndarray:
    """Blur image, uint8 [H, W, 3], as MATLAB's imfilter(image, fspecial('gaussian', 7, 1.6), 'replicate')."""
    window = np.exp(-(np.arange(-(_BLUR_EDGE // 2), _BLUR_EDGE // 2 + 1) ** 2) / (2 * _BLUR_SIGMA**2))
    window /= window.sum()
    half, (height, width) = _BLUR_EDGE // 2, image.shape[:2]
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), "edge")
    rows = sum(weight * padded[i : i + height] for i, weight in enumerate(window))
    total = sum(weight * rows[:, i : i + width] for i, weight in enumerate(window))
    return np.floor(total + 0.5).astype(np.uint8)
