"""Windows of images where RDN gains most and least, and a figure of them: HR, bicubic, RDN and its error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rdn_fast.evaluation import metrics

_CROP = 96  # HR pixels
_ZOOM = 3
_GAP, _CAPTION = 8, 44  # figure pixels
_ROWS = 2  # of the best crops, and of the worst
_AMPLIFIED = 8  # an error of one level in 255 is invisible
_VISIBLE = 6.5  # mean squared error on Y, 40 dB: a window where both images have less shows nothing, as clear sky


class Crop(NamedTuple):
    """A window of an image, at (left, top) in HR pixels, with canonical PSNR-Y of the window alone, in dB."""

    name: str
    left: int
    top: int
    hr: np.ndarray  # uint8 [h, w, 3], as the next two
    bicubic: np.ndarray
    rdn: np.ndarray
    bicubic_psnr: float
    rdn_psnr: float
    gain: float  # dB; see Windows


class Windows:
    """The windows of an image, on a grid of half windows inside the borders that metrics crop.

    RDN's gain in a window is that of its PSNR over bicubic's. Both mean squared errors get one level more, which nobody
    sees: otherwise flat windows with hardly any error would have the largest gain.
    `psnrs`: canonical PSNR-Y of bicubic and of RDN over the whole image, in dB.
    """

    def __init__(self, name: str, hr: np.ndarray, bicubic: np.ndarray, rdn: np.ndarray, scale: int):
        """hr, bicubic, rdn: uint8 [H, W, 3]."""
        self._name, self._images, self._scale = name, (hr, bicubic, rdn), scale
        self._errors = [metrics.squared_error_y(image, hr, scale) for image in (bicubic, rdn)]
        self.psnrs = tuple(map(metrics.psnr, self._errors))
        edges = self._errors[0].shape
        tops, lefts = (sorted({*range(0, edge - _CROP, _CROP // 2), max(0, edge - _CROP)}) for edge in edges)
        self._windows = [np.s_[top : top + _CROP, left : left + _CROP] for top in tops for left in lefts]

    def worst_and_best(self) -> tuple[Crop, Crop]:
        """Return the windows where RDN gains least and most over bicubic, of those with an error to be seen, if any."""
        seen = [window for window in self._windows if max(error[window].mean() for error in self._errors) > _VISIBLE]
        by_gain = sorted(seen or self._windows, key=self._gain)
        return self._crop(by_gain[0]), self._crop(by_gain[-1])

    def hardest(self) -> Crop:
        """Return the window with bicubic's largest error: the same one whatever RDN computes."""
        return self._crop(max(self._windows, key=lambda window: self._errors[0][window].mean()))

    def _gain(self, window) -> float:
        of_bicubic, of_rdn = (error[window].mean() + 1 for error in self._errors)
        return float(10 * np.log10(of_bicubic / of_rdn))

    def _crop(self, window) -> Crop:
        scale, (rows, columns) = self._scale, window
        measured = np.s_[scale:-scale, scale:-scale]
        images = (image[measured][window].copy() for image in self._images)  # a view would keep the whole image
        psnrs = (metrics.psnr(error[window]) for error in self._errors)
        return Crop(self._name, scale + columns.start, scale + rows.start, *images, *psnrs, self._gain(window))


def worst_and_best(name: str, hr: np.ndarray, bicubic: np.ndarray, rdn: np.ndarray, scale: int) -> tuple[Crop, Crop]:
    """Return the windows of an image where RDN gains least and most over bicubic. Arguments as of Windows."""
    return Windows(name, hr, bicubic, rdn, scale).worst_and_best()


def select_best_and_worst(crops: Sequence[tuple[Crop, Crop]]) -> tuple[list[Crop], list[Crop]]:
    """Return the best crops, best first, and the worst ones, worst first. `crops`: worst_and_best() of each image.

    An image is in one of the lists only, if there are several.
    """
    by_worst = sorted(crops, key=lambda of_image: of_image[0].gain)
    half = min(_ROWS, (len(crops) + 1) // 2)
    best = sorted((best for _, best in by_worst[half:] or by_worst), key=lambda crop: -crop.gain)[:_ROWS]
    return best, [worst for worst, _ in by_worst[:half]]


def draw_figure(crops: Sequence[tuple[Crop, Crop]]) -> Image.Image:
    """Draw the best and the worst crops, a row each. `crops`: the worst_and_best() of each image."""
    best, worst = select_best_and_worst(crops)
    rows = [_row(f"best {i}", crop) for i, crop in enumerate(best, 1)]
    rows += [_row(f"worst {i}", crop) for i, crop in enumerate(worst, 1)]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows) + _GAP), "white")
    top = _GAP
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _row(label: str, crop: Crop) -> Image.Image:
    error = np.abs(crop.rdn.astype(int) - crop.hr) * _AMPLIFIED
    columns = (
        (crop.hr, f"{label}: {crop.name}", f"at x {crop.left}, y {crop.top}"),
        (crop.bicubic, "bicubic", f"{crop.bicubic_psnr:.2f} dB"),
        (crop.rdn, "RDN", f"{crop.rdn_psnr:.2f} dB ({crop.rdn_psnr - crop.bicubic_psnr:+.2f})"),
        (metrics.to_uint8(error), "|RDN - HR|", f"times {_AMPLIFIED}"),
    )
    edge = _CROP * _ZOOM
    row = Image.new("RGB", (len(columns) * (edge + _GAP) + _GAP, crop.hr.shape[0] * _ZOOM + _CAPTION + _GAP), "white")
    pen, font = ImageDraw.Draw(row), ImageFont.load_default(size=16)
    for column, (image, *lines) in enumerate(columns):
        x = _GAP + column * (edge + _GAP)
        size = image.shape[1] * _ZOOM, image.shape[0] * _ZOOM
        zoomed = Image.fromarray(image).resize(size, Image.Resampling.NEAREST)
        row.paste(zoomed, (x + (edge - zoomed.width) // 2, 0))
        for line, text in enumerate(lines):
            middle = x + edge // 2, zoomed.height + (1 + 2 * line) * _CAPTION // 4
            pen.text(middle, _shortened(text, edge, font), "black", font, anchor="mm")
    return row


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    while font.getlength(text) > width:
        text = text[:-2] + "…"
    return text
