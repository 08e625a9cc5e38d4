"""Image files -> uint8 RGB arrays, by Pillow. pictures/ opens files here too, but keeps 16 bits and transparency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from PIL.ImageFile import StubImageFile

from rdn_fast.errors import UserError, one_line


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
    """Read a file of any format of safe_formats() -> uint8 [H, W, 3] RGB.

    16-bit grey is reduced to 8 bits, transparency is dropped. Raises ValueError with the reason in one line.
    """
    try:
        return _decode(path)
    except Exception as error:  # Pillow raises nearly anything for a broken file
        raise ValueError(one_line(error)) from None


def safe_formats() -> list[str]:
    """Return the formats that Pillow decodes by itself. Without this list it takes any that matches a file's content.

    Left out: EPS, for which it starts a program; stubs, which need code from elsewhere; IPTC, which wraps any format;
    MPEG, which it identifies but does not decode.
    """
    Image.init()
    stubs = {
        name
        for name, (factory, _) in Image.OPEN.items()
        if isinstance(factory, type) and issubclass(factory, StubImageFile)
    }
    return [name for name in Image.ID if name not in stubs | {"EPS", "IPTC", "MPEG"}]


def open_image(path: str | Path) -> Image.Image:
    """Open a file of one of safe_formats() as Image.open() does."""
    image = Image.open(path, formats=safe_formats())
    # With a file name Pillow would map an uncompressed TIFF, and confuse width and height if its orientation turns it.
    image.filename = ""
    return image


def reject_float(image: Image.Image) -> None:
    """Raise ValueError for an image of floats."""
    if image.mode == "F":
        raise ValueError("float pixels have no defined range; save it with 8 or 16 bits")


def _decode(path: str | Path) -> np.ndarray:
    with open_image(path) as image:
        reject_float(image)
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow's conversion would clip to 0..255
            grey = np.uint8(np.rint(np.clip(np.asarray(image), 0, 65535) / 257))
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))
