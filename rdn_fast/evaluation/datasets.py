"""Sets of images to evaluate on: h5 files and folders of HR images, one by one or all that lie in a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.images import image_files, read_image
from rdn_fast.data.pairs import Pair, degrade
from rdn_fast.errors import UserError
from rdn_fast.evaluation import metrics
from rdn_fast.ordered_map import ordered_map

_ORDER = (
    "set5",
    "set14",
    "b100",
    "bsd100",
    "bsds100",
    "urban100",
    "manga109",
    "div2k",
)  # the field's tables have them so
_IMAGES = {
    ".png",
    ".bmp",
    ".jpg",
    ".jpeg",
    ".tif",
    ".tiff",
    ".webp",
    ".ppm",
}  # what makes a folder a set; load_pairs() reads others, too


class EvalDataset(NamedTuple):
    """`name` is that of no other set."""

    name: str
    path: Path
    pairs: Sequence[Pair]


def open_sets(paths: Sequence[str | Path], data: str | Path | None, scale: int) -> list[EvalDataset]:
    """The sets at `paths`, then those inside `data`, which are told by their contents, in the field's order. Raises UserError for what cannot be used."""
    found = [*map(Path, paths), *(_inside(Path(data), scale) if data else [])]
    taken: set[str] = set()
    return [EvalDataset(distinct(_name(path, scale), taken), path, load_pairs(path, scale)) for path in found]


def load_pairs(path: str | Path, scale: int) -> Sequence[Pair]:
    """The pairs of an evaluation h5, or of a folder of HR images (cropped to multiples of scale, LR by PIL's bicubic)."""
    if Path(path).is_dir():
        pairs: Sequence[Pair] = list(
            ordered_map(lambda file: _read(file, scale), image_files(path), workers=2, ahead=4)
        )
        sizes = [pair.lr.shape[:2] for pair in pairs]
    else:
        opened = PairedH5(path, scale)
        pairs, sizes = _OfFile(opened), opened.sizes
    smallest = metrics.smallest_side(scale)
    for i, size in enumerate(sizes):
        if scale * min(size) < smallest:
            raise UserError(
                f"{path}: image {pairs[i].name} is smaller than the {smallest} pixels that PSNR and SSIM at x{scale} need; remove it"
            )
    return pairs


def distinct(name: str, taken: set[str]) -> str:
    """The name, with _2, _3, ... when it is taken, be it in another case; the result is taken from now on."""
    new, k = name, 1
    while new.casefold() in taken:
        k += 1
        new = f"{name}_{k}"
    taken.add(new.casefold())
    return new


class _OfFile(Sequence):
    """The pairs of an h5 file, each read when it is asked for."""

    def __init__(self, pairs: PairedH5):
        self._pairs, self._names = pairs, pairs.names()

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, i: int) -> Pair:
        return Pair(self._names[i], self._pairs.lr[i], self._pairs.hr[i])


def _read(file: Path, scale: int) -> Pair:
    try:
        return degrade(_unicode(file.stem), read_image(file), scale)
    except ValueError as error:
        raise UserError(f"{file}: not an image that can be evaluated ({error}); remove it from the folder") from None


def _inside(data: Path, scale: int) -> list[Path]:
    """The folder itself when it holds images; else its sub-folders that do (or whose HR does), and its evaluation h5 files."""
    if not data.is_dir():
        raise UserError(f"--data {data}: no such folder; give the one that Set5, Set14, ... lie in")
    if _has_images(data):
        return [data]
    inside = sorted(path for path in data.iterdir() if not path.name.startswith("."))
    folders = [
        path / "HR" if _has_images(path / "HR") else path
        for path in inside
        if _has_images(path) or _has_images(path / "HR")
    ]
    names = {_name(path, scale) for path in folders}
    files = []
    for path in inside:
        other = (made_for := re.search(r"_x(\d)$", path.stem)) and int(made_for[1]) != scale
        if path.suffix != ".h5" or other or _name(path, scale) in names:
            continue
        try:
            if _five_crops(PairedH5(path, scale)):
                raise UserError(
                    f"{path}: made for training, as it seems: five crops of each image; give it to --eval-file if it is not"
                )
            files.append(path)
        except UserError as error:
            print(f"left out: {error}")
    if not folders and not files:
        raise UserError(
            f"--data {data}: holds neither images, nor folders of images, nor x{scale} evaluation files; give the one that Set5, Set14, ... lie in"
        )
    return sorted([*folders, *files], key=lambda path: _place(_name(path, scale)))


def _has_images(folder: Path) -> bool:
    try:
        return folder.is_dir() and any(
            path.suffix.lower() in _IMAGES and not path.name.startswith(".") for path in folder.iterdir()
        )
    except OSError as error:
        raise UserError(
            f"--data: {folder} cannot be read ({error.strerror}); make it readable, or name the sets with --eval-file"
        ) from None


def _five_crops(pairs: PairedH5) -> bool:
    """Whether each five images in a row are of one size: training files look so, and sets of whole images do not."""
    return len(pairs) % 5 == 0 and bool((pairs.sizes.reshape(-1, 5, 2) == pairs.sizes[::5, None]).all())


def _place(name: str) -> tuple[int, str]:
    known = [i for i, start in enumerate(_ORDER) if name.lower().startswith(start)]
    return (known or [len(_ORDER)])[0], name


def _name(path: Path, scale: int) -> str:
    """What the set is called: Set5 for Set5/, Set5/HR/ (EDSR-PyTorch's folders) and Set5_x2.h5."""
    path = Path(os.path.abspath(path))
    if path.is_dir():
        return _unicode(path.parent.name if path.name == "HR" else path.name)
    return _unicode(path.stem.removesuffix(f"_x{scale}"))


def _unicode(name: str) -> str:
    """A file's name, of any bytes, as tables and pictures can hold it."""
    return os.fsencode(name).decode(errors="backslashreplace")
