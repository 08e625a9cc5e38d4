"""Image folder -> h5 in the reference's layout: groups lr and hr, contiguous uint8 [H, W, 3] RGB, LR by PIL's bicubic.

Contiguous, so that data/h5.py can map it; written aside and renamed, so that a half-written file never has the final name.
"""

from __future__ import annotations

import io
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from PIL import Image
from PIL.ImageFile import StubImageFile

from rdn_fast.data.ordered import ordered_map
from rdn_fast.errors import UserError
from rdn_fast.progress import Bar


class Pair(NamedTuple):
    """lr: uint8 [h, w, 3], hr: uint8 [scale*h, scale*w, 3], RGB."""

    name: str
    lr: np.ndarray
    hr: np.ndarray


def prepare(
    images_dir: str | Path,
    output_path: str | Path,
    scale: int,
    evaluation: bool = False,
    compat: bool = False,
    strict: bool = False,
    flags: tuple[str, str] = ("--images-dir", "--output-path"),
    attributes: Mapping[str, str] | None = None,
) -> None:
    """Write `output_path` from the images of a folder: five half-size crops per image, or with `evaluation` the whole image.

    Unreadable files are named and skipped; with `strict`, or when nothing is left, they are a UserError and nothing is written.
    `flags` are what the user gave for the two paths; `attributes` go to the root of the file.
    """
    paths = image_files(images_dir)
    skipped = []

    def load(path: Path) -> list[Pair] | str:
        try:
            image = read_image(path)
            if evaluation:
                return [degrade(path.stem, image, scale, compat)]
            return [degrade(f"{path.stem} (crop {k})", crop, scale, compat) for k, crop in enumerate(five_crops(image))]
        except ValueError as error:
            return f"{path}: {error}"

    def pairs() -> Iterator[Pair | None]:
        with warnings.catch_warnings(), Bar("images", len(paths)) as bar:
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files; what cannot be read is named below
            for result in ordered_map(load, paths, workers=2, ahead=4):
                bar.advance()
                if isinstance(result, str):
                    if strict:
                        raise UserError(f"{result}; remove or repair it, or leave out --strict to skip it")
                    skipped.append(result)
                    bar.say(f"skipped {result}")
                    yield None
                else:
                    yield from result
        if len(skipped) == len(paths):
            raise UserError(f"{flags[0]} {images_dir}: none of its {len(paths)} files is an image that can be used")

    written = write_pairs(output_path, pairs(), flags[1], attributes)
    print(f"{output_path}: {written} pairs from {len(paths) - len(skipped)} images at x{scale}, {len(skipped)} files skipped")


def write_pairs(path: str | Path, pairs: Iterable[Pair | None], flag: str = "--output-path", attributes: Mapping[str, str] | None = None) -> int:
    """Write pairs as an h5 file whose root has these `attributes`, aside and then renamed. Returns how many; None stands for one that was skipped."""
    n = 0
    with new_file(path, flag) as (file, check):
        file.attrs.update(attributes or {})
        groups = file.create_group("lr"), file.create_group("hr")
        for pair in pairs:
            if pair is not None:
                for group, image in zip(groups, (pair.lr, pair.hr), strict=True):
                    group.create_dataset(str(n), data=image)
                groups[1][str(n)].attrs["name"] = pair.name
                n += 1
            check()
    return n


@contextmanager
def new_file(path: str | Path, flag: str) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """An empty h5 file to fill, and check() to call between its images: it ends the writing early when the disk is full.

    It is written aside, synced and renamed to `path` at the end; after an error nothing of it is left. UserError, with the
    `flag` that chooses the path, when it cannot be written: any OSError of the body is taken for that. Ctrl-C is heard by check().
    """
    path = Path(path)
    with _interrupts_held() as interrupted:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
            os.close(handle)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another {flag}") from None
        try:
            with _HeldErrors(temporary) as raw:

                def check() -> None:
                    interrupted()
                    raw.check()

                with h5py.File(raw, "w") as file:
                    yield file, check
                raw.check()
                os.fsync(raw.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are private
            os.replace(temporary, path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error}); free some space or choose another {flag}") from None
        finally:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def _interrupts_held() -> Iterator[Callable[[], None]]:
    """Ctrl-C waits for the next call of what is yielded, which raises KeyboardInterrupt: in the midst of HDF5 it would break the file's closing."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    came: list[int] = []

    def interrupted() -> None:
        if came:
            raise KeyboardInterrupt

    def hear(number, _) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one acts as usual

    if ours:
        signal.signal(signal.SIGINT, hear)
    try:
        yield interrupted
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupted()


class _HeldErrors(io.FileIO):
    """A file that keeps the first OSError of a write for check(): HDF5 crashes when a write fails while it closes."""

    def __init__(self, path: str):
        super().__init__(path, "r+")
        self._error: OSError | None = None

    def write(self, data) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._error = self._error or error
        return size

    def truncate(self, size=None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size

    def check(self) -> None:
        if self._error is not None:
            raise self._error


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


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def safe_formats() -> list[str]:
    """The formats that Pillow decodes by itself; without a list it goes by content alone, whatever a file is called.

    For EPS it starts a program, for a stub it needs others' code, IPTC holds a picture of any format; MPEG it only knows by sight.
    """
    Image.init()
    stubs = {name for name, (factory, _) in Image.OPEN.items() if isinstance(factory, type) and issubclass(factory, StubImageFile)}
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


def five_crops(image: np.ndarray) -> list[np.ndarray]:
    """The half-size crops at the four corners and the centre of image [H, W, 3], as the reference takes them."""
    h, w = image.shape[0] // 2, image.shape[1] // 2
    bottom, right = image.shape[0] - h, image.shape[1] - w
    corners = (0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))
    return [image[top : top + h, left : left + w] for top, left in corners]


def degrade(name: str, image: np.ndarray, scale: int, compat: bool = False) -> Pair:
    """image uint8 [H, W, 3] -> its pair: HR cropped (with `compat` resized, as yjn870's code does) to multiples of scale."""
    h, w = image.shape[0] // scale, image.shape[1] // scale
    if h == 0 or w == 0:
        raise ValueError(f"{image.shape[1]}x{image.shape[0]} pixels are too small for x{scale}")
    if compat:
        hr = Image.fromarray(image).resize((w * scale, h * scale), Image.Resampling.BICUBIC)
    else:
        hr = Image.fromarray(np.ascontiguousarray(image[: h * scale, : w * scale]))
    return Pair(name, np.asarray(hr.resize((w, h), Image.Resampling.BICUBIC)), np.asarray(hr))
