"""Folders of image files, and their images as uint8 RGB arrays. pictures/ keeps 16 bits and transparency."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from rdn_fast.data.decode import decode, one_line_errors, to_8_bits
from rdn_fast.data.image_formats import open_image
from rdn_fast.errors import UserError, why_no_folder


def image_files(folder: str | Path, recursive: bool = False) -> list[Path]:
    """Return what lies in a folder, with `recursive` in all folders in it, sorted by path, without what is hidden.

    Also what read_image() refuses: pipes, dangling links, folders that cannot be read. Whoever reads the images names
    it. Raises UserError when there are none, and for a folder that cannot be read itself.
    """
    folder, paths = Path(folder), []
    if (flaw := why_no_folder(folder)) is not None:
        raise UserError(f"{folder}: {flaw}; give a folder of images")

    def unreadable(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise UserError(f"{folder}: cannot be read ({error.strerror}); make it readable, or give another")
        paths.append(Path(error.filename))

    for root, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        paths += [Path(root, name) for name in names if not name.startswith(".")]
    if not paths:
        number = 0 if recursive else folders_inside(folder)
        itself = f" itself, but {number} folders (prepare --recursive)" if number else ""
        raise UserError(f"{folder}: holds no files{itself}; give a folder of images")
    return sorted(paths)


def folders_inside(folder: str | Path) -> int:
    """Return the number of folders in a folder, without hidden ones; 0 where it cannot be read."""
    _, folders, _ = next(os.walk(folder), ("", [], []))
    return sum(not name.startswith(".") for name in folders)


def read_image(path: str | Path) -> np.ndarray:
    """Read a file of any format of safe_formats() -> uint8 [H, W, 3] RGB, as decode() but with 8 bits and no alpha.

    Raises ValueError with the reason in one line.
    """
    with one_line_errors(), open_image(path) as image:
        pixels = to_8_bits(decode(image, path).pixels)
    grey = pixels.shape[2] < 3
    return np.repeat(pixels[..., :1], 3, axis=2) if grey else np.ascontiguousarray(pixels[..., :3])
