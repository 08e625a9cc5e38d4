"""Folders of image files, and their images as uint8 RGB arrays. pictures/ keeps 16 bits and transparency."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from rdn_fast.data.decode import decode, one_line_errors, to_8_bits
from rdn_fast.data.image_formats import open_image
from rdn_fast.errors import UserError, no_folder


def image_files(folder: str | Path, recursive: bool = False) -> list[Path]:
    """Return the files of a folder, with `recursive` of all folders in it, sorted by path, without hidden ones.

    Raises UserError when there are none, and OSError for a folder that cannot be read.
    """
    folder, paths = Path(folder), []
    if not folder.is_dir():
        raise UserError(f"{folder}: {no_folder(folder)}; give a folder of images")
    for root, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        paths += [Path(root, name) for name in names if not name.startswith(".")]
    paths = sorted(path for path in paths if path.is_file())
    if not paths:
        number = 0 if recursive else folders_inside(folder)
        itself = f" itself, but {number} folders (prepare --recursive)" if number else ""
        raise UserError(f"{folder}: holds no files{itself}; give a folder of images")
    return paths


def folders_inside(folder: str | Path) -> int:
    """Return the number of folders in a folder, without hidden ones."""
    return sum(path.is_dir() and not path.name.startswith(".") for path in Path(folder).iterdir())


def _raise(error: OSError) -> None:
    raise error


def read_image(path: str | Path) -> np.ndarray:
    """Read a file of any format of safe_formats() -> uint8 [H, W, 3] RGB, as decode() but with 8 bits and no alpha.

    Raises ValueError with the reason in one line.
    """
    with one_line_errors(), open_image(path) as image:
        pixels = to_8_bits(decode(image, path).pixels)
    grey = pixels.shape[2] < 3
    return np.repeat(pixels[..., :1], 3, axis=2) if grey else np.ascontiguousarray(pixels[..., :3])
