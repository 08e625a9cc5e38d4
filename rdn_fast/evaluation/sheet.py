"""Sheets: PNG files with the crops of one validation, and what they show as JSON in the file.

A row is a crop; its columns are bicubic, RDN and HR.
"""

from __future__ import annotations

import io
import json
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rdn_fast.evaluation.crops import Crop
from rdn_fast.files import finite

KINDS = ("tracked", "best", "worst")
_KEY = "rdn_fast sheet"  # of the JSON among the PNG's texts
_NUMBERS = ("bicubic_psnr", "rdn_psnr", "gain")
_MOST_PIXELS = 10_000_000  # of a sheet that is read


class Measured(NamedTuple):
    """Canonical PSNR-Y of a whole validation picture, in dB; NaN where it is not known to be finite."""

    name: str
    bicubic_psnr: float
    rdn_psnr: float


class Sheet(NamedTuple):
    """What a validation at a step looked like. crops: of each of KINDS; "tracked" are windows that stay the same."""

    step: int
    pictures: int  # in the validation set
    measured: list[Measured]  # some of them, or all
    crops: dict[str, list[Crop]]


def encode(sheet: Sheet) -> bytes:
    """Return the sheet as a PNG file."""
    rows = [(kind, crop) for kind in KINDS for crop in sheet.crops[kind]]
    images = [np.concatenate([crop.bicubic, crop.rdn, crop.hr], axis=1) for _, crop in rows]
    canvas = np.full((sum(map(len, images)), max(image.shape[1] for image in images), 3), 255, np.uint8)
    top, described = 0, []
    for (kind, crop), image in zip(rows, images, strict=True):
        height, width = image.shape[:2]
        canvas[top : top + height, :width] = image
        described.append(
            {
                "kind": kind,
                "name": crop.name,
                "position": [crop.left, crop.top],
                "box": [top, height, width // 3],
                **{key: getattr(crop, key) for key in _NUMBERS},
            }
        )
        top += height
    measured = [list(each) for each in sheet.measured]
    about = {"step": sheet.step, "pictures": sheet.pictures, "measured": measured, "crops": described}
    texts, file = PngInfo(), io.BytesIO()
    texts.add_text(_KEY, json.dumps(finite(about)))
    Image.fromarray(canvas).save(file, "PNG", pnginfo=texts)
    return file.getvalue()


def decode(content: bytes) -> Sheet:
    """Read a sheet. Raises ValueError for anything else."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError("too large")
            about = json.loads(image.text[_KEY])
            pixels = np.asarray(image.convert("RGB"))
        measured = [Measured(str(name), _number(cubic), _number(rdn)) for name, cubic, rdn in about["measured"]]
        crops: dict[str, list[Crop]] = {kind: [] for kind in KINDS}
        for each in about["crops"]:
            crops[each["kind"]].append(_crop(each, pixels))
        return Sheet(int(about["step"]), int(about["pictures"]), measured, crops)
    except Exception as error:  # Pillow and foreign JSON raise nearly anything
        raise ValueError(f"is no whole sheet of crops ({type(error).__name__})") from None


def _crop(described: dict, pixels: np.ndarray) -> Crop:
    top, height, width = (int(number) for number in described["box"])
    left, position_top = (int(number) for number in described["position"])
    row = pixels[top : top + height]
    bicubic, rdn, hr = (row[:, i * width : (i + 1) * width] for i in range(3))
    if hr.shape != (height, width, 3) or not hr.size:
        raise ValueError("a crop lies outside of the sheet")
    numbers = (_number(described[key]) for key in _NUMBERS)
    return Crop(str(described["name"]), left, position_top, hr, bicubic, rdn, *numbers)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
