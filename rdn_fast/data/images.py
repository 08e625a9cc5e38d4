"""Image files -> uint8 RGB arrays, by Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from PIL.ImageFile import StubImageFile

from rdn_fast.errors import UserError, one_line


def image_files(folder: str | Path) -> list[Path]:
    """The files of a folder by name; hidden ones and folders are left out. UserError when there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder of images")
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not paths:
        raise UserError(f"{folder}: holds no files; give a folder of images")
    return paths


def read_image(path: str | Path) -> np.ndarray:
    """Any picture that PIL reads -> uint8 [H, W, 3] RGB; 16 bits are reduced to 8, transparency is dropped.

    Raises ValueError with the reason, in one line, when it cannot be read.
    """
    try:
        return _decode(path)
    except Exception as error:  # Pillow raises nearly anything for a broken file
        raise ValueError(one_line(error)) from None


def safe_formats() -> list[str]:
    """The formats that Pillow decodes by itself; without a list it goes by content alone, whatever a file is called.

    For EPS it starts a program, for a stub it needs others' code, IPTC holds a picture of any format; MPEG it only knows by sight.
    """
    Image.init()
    stubs = {
        name
        for name, (factory, _) in Image.OPEN.items()
        if isinstance(factory, type) and issubclass(factory, StubImageFile)
    }
    return [name for name in Image.ID if name not in stubs | {"EPS", "IPTC", "MPEG"}]


def open_image(path: str | Path) -> Image.Image:
    """As Image.open, for a file of one of these formats."""
    image = Image.open(path, formats=safe_formats())
    image.filename = ""  # else Pillow maps a TIFF of plain pixels into memory, and takes its width for its height where it is to be turned
    return image


def _decode(path: str | Path) -> np.ndarray:
    with open_image(path) as image:
        if image.mode == "F":
            raise ValueError("float pixels have no defined range; save it with 8 or 16 bits")
        if image.mode.startswith("I"):  # 16-bit grey; PIL's own conversion would clip it to 0..255
            grey = np.uint8(np.rint(np.clip(np.asarray(image), 0, 65535) / 257))
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))
