"""Folders of image files, and their images as uint8 RGB arrays. pictures/ keeps 16 bits and transparency."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rdn_fast.data.decode import decode, one_line_errors, to_8_bits
from rdn_fast.data.image_formats import open_image
from rdn_fast.errors import UserError


def image_files(folder: str | Path) -> list[Path]:
    """Return the files of a folder, sorted by name, without hidden ones. Raises UserError when there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder of images")
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not paths:
        raise UserError(f"{folder}: holds no files; give a folder of images")
    return paths


def read_image(path: str | Path) -> np.ndarray:
    """Read a file of any format of safe_formats() -> uint8 [H, W, 3] RGB, as decode() but with 8 bits and no alpha.

    Raises ValueError with the reason in one line.
    """
    with one_line_errors(), open_image(path) as image:
        pixels = to_8_bits(decode(image, path).pixels)
    grey = pixels.shape[2] < 3
    return np.repeat(pixels[..., :1], 3, axis=2) if grey else np.ascontiguousarray(pixels[..., :3])
