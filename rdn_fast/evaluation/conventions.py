"""The conventions by which PSNR and SSIM of 8-bit pictures are printed, and which of them gives a certain number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

import numpy as np

from rdn_fast.errors import UserError
from rdn_fast.evaluation import metrics

# channels: what they are, and who measures them
CHANNELS = {
    "Y": "Y = 16 + (65.738 R + 129.057 G + 25.064 B)/256; with a crop of the scale the field's canonical convention",
    "Y uint8": "the same Y rounded to whole levels, as MATLAB's rgb2ycbcr of a uint8 picture gives it",
    "Y ref.": "Y with 64.738 R, as yjn870's code and the Ascend port have it",
    "luma": "0.299 R + 0.587 G + 0.114 B, as Pillow's and OpenCV's grey before they round it, and pyiqa's default",
    "RGB": "all three channels together; SSIM is the mean of theirs",
}
_LUMA = np.array([0.299, 0.587, 0.114])
_PRINTED = {"PSNR": 2, "SSIM": 4}  # decimals


class Convention(NamedTuple):
    """How a number is made. crop: pixels cut from each border. over: "images": one value per image, then their mean;
    "pixels": PSNR of the squared error of all images together, as torchmetrics has it by default."""

    measure: str  # PSNR or SSIM
    channels: str  # of CHANNELS
    over: str
    crop: int

    @property
    def in_words(self) -> str:
        pooled = ", all pixels of the set together" if self.over == "pixels" else ""
        crop = f"{self.crop} pixels cropped from each border" if self.crop else "no border cropped"
        return f"{self.measure} of {self.channels}, {crop}{pooled}"


class Measured(NamedTuple):
    """Of one image, channels and crop. ssim: None where there is no room for a window."""

    squared_error: float  # the sum
    values: int  # how many that is the sum of
    ssim: float | None


def measure(sr: np.ndarray, hr: np.ndarray, crops: Sequence[int]) -> dict[tuple[str, int], Measured]:
    """Measure two images, uint8 [H, W, 3], in all channels and crops. Raises ValueError where a crop leaves nothing."""
    if min(sr.shape[:2]) <= 2 * max(crops):
        raise ValueError(f"{sr.shape[1]}x{sr.shape[0]} pixels are too small for a crop of {max(crops)}")
    found = {}
    for channels in CHANNELS:
        planes = [(_planes(sr, channels, i), _planes(hr, channels, i)) for i in range(3 if channels == "RGB" else 1)]
        errors = [np.square(a - b) for a, b in planes]
        room = min(sr.shape[:2]) >= metrics.smallest_side(0)
        maps = [metrics.ssim_map(a, b) for a, b in planes] if room else []
        for crop in crops:
            inner = np.s_[crop : sr.shape[0] - crop, crop : sr.shape[1] - crop]
            windows = [each[crop : each.shape[0] - crop, crop : each.shape[1] - crop] for each in maps]
            ssim = float(np.mean([each.mean() for each in windows])) if windows and windows[0].size else None
            error = sum(float(each[inner].sum()) for each in errors)
            found[channels, crop] = Measured(error, len(errors) * errors[0][inner].size, ssim)
    return found


def _planes(rgb: np.ndarray, channels: str, i: int) -> np.ndarray:
    """Return plane i of the channels: float64 [H, W]."""
    match channels:
        case "RGB":
            return rgb[..., i].astype(np.float64)
        case "luma":
            return rgb @ _LUMA
        case "Y ref.":
            return metrics.luma_compat(rgb)
    y = metrics.luma(rgb)
    return np.floor(y + 0.5) if channels == "Y uint8" else y


def values(images: Sequence[dict[tuple[str, int], Measured]], crops: Iterable[int]) -> dict[Convention, float]:
    """Return what each convention gives for a set of images. PSNR is in dB; inf where nothing differs."""
    found = {}
    for channels in CHANNELS:
        for crop in crops:
            of_images = [image[channels, crop] for image in images]
            psnrs = [metrics.psnr(np.array(each.squared_error / each.values)) for each in of_images]
            found[Convention("PSNR", channels, "images", crop)] = metrics.mean(psnrs)
            if len(images) > 1:
                pooled = sum(each.squared_error for each in of_images) / sum(each.values for each in of_images)
                found[Convention("PSNR", channels, "pixels", crop)] = metrics.psnr(np.array(pooled))
            ssims = [each.ssim for each in of_images]
            if None not in ssims:
                found[Convention("SSIM", channels, "images", crop)] = float(np.mean(ssims))
    return found


class Claim(NamedTuple):
    """A number as it was printed."""

    text: str
    value: float
    measure: str  # PSNR or SSIM
    tolerance: float  # half a unit of the last digit

    @classmethod
    def parse(cls, text: str) -> Claim:
        """Read "38.24" (PSNR) or ".9614" (SSIM, at most 1). Raises UserError."""
        try:
            number = Decimal(text)
        except InvalidOperation:
            number = Decimal("nan")
        if not (number.is_finite() and number > 0):
            raise UserError(f"--claim {text}: give a PSNR, as 38.24, or an SSIM, as 0.9614")
        unit = 10.0 ** min(0, number.as_tuple().exponent)
        return cls(text, float(number), "SSIM" if number <= 1 else "PSNR", unit / 2 + 1e-9)

    def answer(self, found: dict[Convention, float]) -> tuple[list[Convention], list[Convention]]:
        """Return the conventions that give the number, rounded to its digits; where none does, the nearest three."""
        mine = sorted(
            (each for each in found if each.measure == self.measure), key=lambda each: abs(found[each] - self.value)
        )
        giving = [each for each in mine if abs(found[each] - self.value) <= self.tolerance]
        return giving, [] if giving else mine[:3]

    def in_lines(self, found: dict[Convention, float]) -> list[str]:
        giving, nearest = self.answer(found)
        lines = [f"{self.text} is {each.in_words} ({number(each, found[each], 2)})" for each in giving]
        if not giving:
            lines.append(f"{self.text}: no convention gives it; the nearest:")
            lines += [f"  {number(each, found[each])} {each.in_words}" for each in nearest]
        return lines


def number(convention: Convention, value: float, more: int = 0) -> str:
    """Return the value with as many decimals as are customary, and `more`."""
    return f"{value:.{_PRINTED[convention.measure] + more}f}"
