"""A picture of what the numbers mean: HR, bicubic and RDN crops side by side, labelled with dB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rdn_fast import metrics
from rdn_fast.checkpoint import write_aside
from rdn_fast.data.prepare import Pair
from rdn_fast.evaluate import bicubic, predict
from rdn_fast.model import RDN

_CROP, _ZOOM, _GAP, _CAPTION = 96, 3, 8, 30  # HR pixels, factor, picture pixels


def draw(model: RDN, pairs: list[Pair], path: str | Path) -> None:
    """Write a PNG with one row per pair: the window that bicubic gets most wrong, under it the PSNR-Y of the whole image."""
    rows = [_row(model, pair) for pair in pairs]
    width = max(row.width for row in rows)
    sheet = Image.new("RGB", (width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    write_aside(path, lambda file: sheet.save(file, "PNG", optimize=True))


def _row(model: RDN, pair: Pair) -> Image.Image:
    scale = model.config.scale
    cubic, ours = bicubic(pair), metrics.to_uint8(predict(model, pair.lr))
    top, left = _worst_window(cubic, pair.hr)
    edge = _CROP * _ZOOM
    row = Image.new("RGB", (3 * edge + 4 * _GAP, edge + _CAPTION + _GAP), "white")
    pen, font = ImageDraw.Draw(row), ImageFont.load_default(size=16)
    captions = f"{pair.name}, HR", f"bicubic {metrics.psnr_y(cubic, pair.hr, scale):.2f} dB", f"RDN {metrics.psnr_y(ours, pair.hr, scale):.2f} dB"
    for column, (image, caption) in enumerate(zip((pair.hr, cubic, ours), captions, strict=True)):
        x = _GAP + column * (edge + _GAP)
        crop = Image.fromarray(np.ascontiguousarray(image[top : top + _CROP, left : left + _CROP]))
        row.paste(crop.resize((crop.width * _ZOOM, crop.height * _ZOOM), Image.Resampling.NEAREST), (x, _GAP))
        pen.text((x + edge // 2, _GAP + edge + _CAPTION // 2), caption, "black", font, anchor="mm")
    return row


def _worst_window(image: np.ndarray, hr: np.ndarray) -> tuple[int, int]:
    """Top and left of the window where image differs most from hr, on a grid of half windows."""
    error = np.square(image.astype(np.float32) - hr).mean(axis=2)
    step = _CROP // 2
    corners = [(y, x) for y in range(0, max(1, error.shape[0] - _CROP + 1), step) for x in range(0, max(1, error.shape[1] - _CROP + 1), step)]
    return max(corners, key=lambda at: error[at[0] : at[0] + _CROP, at[1] : at[1] + _CROP].mean())
