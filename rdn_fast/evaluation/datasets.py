"""Datasets to evaluate on: h5 files and folders of HR images, given one by one or found inside a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from rdn_fast.data.degradation import PLAIN, Degradation
from rdn_fast.data.given_lr import GIVEN, find_lr
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.images import folders_inside
from rdn_fast.data.pairs import Pair
from rdn_fast.errors import UserError, naming_flag, why_no_file, why_no_folder
from rdn_fast.evaluation import metrics
from rdn_fast.evaluation.picture_folder import PictureFolder
from rdn_fast.terminal import print_line, printable

_ORDER = ("set5", "set14", "b100", "bsd100", "bsds100", "urban100", "manga109", "div2k")  # of tables in the field
_IMAGES = {".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".ppm"}  # suffixes that make a folder a dataset


class EvalDataset(NamedTuple):
    name: str  # unique among the datasets of an evaluation
    path: Path
    pairs: Sequence[Pair]
    notes: list[str]  # what of its files is left out, and why
    lr_made_by: str | None  # where LR images come from, in words; None where an h5 file does not say it
    lr_folder: Path | None  # of given LR pictures

    @property
    def folders(self) -> list[Path]:
        """Return the folders that are read, or the file."""
        return [self.path, *([] if self.lr_folder is None else [self.lr_folder])]


def open_datasets(
    paths: Sequence[str | Path],
    data: str | Path | None,
    scale: int,
    strict: bool = False,
    degradation: Degradation | None = None,
    lr_dirs: Sequence[str | Path] = (),
) -> list[EvalDataset]:
    """Open the datasets at `paths`, then those found inside the folder `data`, in the order of the field's tables.

    Raises UserError for a path that cannot be used. Files inside `data` that cannot be used are left out, with a
    printed line each. strict, degradation: as of load_pairs. lr_dirs: a folder of LR pictures for each of `paths`;
    empty: none. A line says so where LR images of an h5 file were made otherwise.
    """
    if lr_dirs and len(lr_dirs) != len(paths):
        raise UserError(
            f"--eval-lr-dir: {len(lr_dirs)} folders for the {len(paths)} sets of --eval-file; give one for each"
        )
    found = [*map(Path, paths), *(_find_inside(Path(data), scale) if data else [])]
    taken: set[str] = set()
    datasets = []
    for i, path in enumerate(found):
        notes: list[str] = []

        def say(note: str, notes: list[str] = notes) -> None:
            notes.append(note)
            print_line(note)

        lr_dir = lr_dirs[i] if i < len(lr_dirs) else None
        pairs = load_pairs(path, scale, say, strict, degradation, lr_dir)
        lr_folder = pairs.lr_folder if isinstance(pairs, PictureFolder) else None
        otherwise = made_otherwise(path, pairs.lr_made_by, (degradation or PLAIN).in_words)
        if otherwise is not None and lr_folder is None:
            say(otherwise)
        name = unique_name(_name(path, scale), taken)
        datasets.append(EvalDataset(name, path, pairs, notes, pairs.lr_made_by, lr_folder))
    return datasets


def first_scale(paths: Sequence[str | Path]) -> int | None:
    """Return the scale of the first h5 file among these, None where there is none. Raises UserError as PairedH5."""
    return next((PairedH5(path, None).scale for path in paths if os.path.isfile(path)), None)


def load_pairs(
    path: str | Path,
    scale: int,
    say: Callable[[str], None] = print_line,
    strict: bool = False,
    degradation: Degradation | None = None,
    lr_dir: str | Path | None = None,
) -> PairedH5 | PictureFolder:
    """Open an evaluation h5, or a folder of HR images, whose pairs are read when they are indexed.

    HR images of a folder are cropped to multiples of `scale`. Their LR images are the pictures of lr_dir; without it
    they are made by `degradation`; without both they are those of the folder that find_lr() finds, which a line says,
    or made by PLAIN. Of *_HR beside *_LR only the former are HR images.
    say: called with a line about that, and for each file of a folder that cannot be read or is too small for the
    metrics, or has no partner, which is skipped. strict: raise UserError for such a file instead.

    Raises UserError, also for an h5 file with an image that is too small.
    """
    if os.path.isdir(path):
        lr = lr_dir or degradation or _given_beside(path, scale, say) or PLAIN
        inside = not isinstance(lr, Degradation) and Path(path) in Path(lr).parents
        if number := folders_inside(path) - inside:
            say(f"{path}: {number} folders in it are passed over")
        with naming_flag("--eval-lr-dir", lr_dir) if lr_dir else nullcontext():
            return PictureFolder(path, scale, say, strict, lr)
    if lr_dir is not None:
        raise UserError(f"--eval-lr-dir {lr_dir}: {path} is no folder of HR images; an h5 file has its own LR images")
    pairs = PairedH5(path, scale)
    pairs.names()  # read and kept now: the path may belong to another file later
    smallest = metrics.smallest_side(scale)
    for i, size in enumerate(pairs.sizes):
        if scale * min(size) < smallest:
            raise UserError(
                f"{path}: image {pairs[i].name} is smaller than the {smallest} pixels that PSNR and SSIM at x{scale} "
                "need; remove it"
            )
    return pairs


def _given_beside(path: str | Path, scale: int, say: Callable[[str], None]) -> Path | None:
    """Return the folder of LR pictures that lies with the HR pictures at `path`, and say that it is used."""
    found = find_lr(path, scale)
    if len(found) > 1:
        raise UserError(
            f"{path}: LR pictures of x{scale} lie in {found[0]} and in {found[1]}; give one of them to --eval-lr-dir, "
            "or --bicubic to make LR images"
        )
    if not found:
        return None
    say(f"{path}: LR images are the pictures of {found[0]} (--bicubic makes them instead)")
    return found[0]


def made_otherwise(path: str | Path, made_by: str | None, expected: str) -> str | None:
    """Return a line where LR images of the file at `path` were not made as expected; None where they were, or may be.

    made_by, expected: as of Degradation.in_words; None: nobody knows.
    """
    if made_by in (None, expected) or (made_by.startswith(GIVEN) and expected.startswith(GIVEN)):
        return None
    return f"{path}: its LR images come from {made_by}, not from {expected}; they are taken as they are"


def unique_name(name: str, taken: set[str]) -> str:
    """Return the name, with _2, _3, ... if it is taken, regardless of case. Add the result, casefolded, to `taken`."""
    unique, k = name, 1
    while unique.casefold() in taken:
        k += 1
        unique = f"{name}_{k}"
    taken.add(unique.casefold())
    return unique


def _find_inside(data: Path, scale: int) -> list[Path]:
    """Return the datasets in a folder: itself if it holds images; else its folders with images, and evaluation files.

    A folder with images in its sub-folder HR, GTmod12 or image_SRF_<scale> counts by that; one line names a folder
    with images in others. LR pictures of this scale that find_lr() finds for a set are none. A file that a folder has
    the name of is left out.
    """
    if (flaw := why_no_folder(data)) is not None:
        remedy = "--eval-file takes files" if flaw == "is a file" else "give the one that Set5, Set14, ... lie in"
        raise UserError(f"--data {data}: {flaw}; {remedy}")
    if _has_images(data):
        return [data]
    paths = sorted(path for path in data.iterdir() if not path.name.startswith("."))
    folders, elsewhere = [], {}
    for path in (path for path in paths if os.path.isdir(path)):
        if not os.access(path, os.R_OK | os.X_OK):
            print_line(f"left out: {path}: {why_no_file(path)}")
            continue
        inside = [path / "HR", path, path / "GTmod12", path / f"image_SRF_{scale}"]
        if candidates := [folder for folder in inside if _has_images(folder)]:
            folders.append(candidates[0])
        elif deeper := [folder.name for folder in sorted(path.iterdir()) if _has_images(folder)]:
            elsewhere[path] = ", ".join(deeper)
    lr = {
        place
        for folder in folders
        for found in find_lr(folder, scale)
        for place in {found, *found.parents} - {folder, *folder.parents}
    }
    folders = [folder for folder in folders if folder not in lr]
    for path, names in elsewhere.items():
        if path not in lr:
            print_line(f"left out: {path}: its images lie in {names}; give the right one to --eval-file")
    names = {_name(path, scale) for path in folders}
    files = [path for path in paths if _name(path, scale) not in names and _is_evaluation_file(path, scale)]
    if not folders and not files:
        raise UserError(
            f"--data {data}: holds neither images, nor folders of images, nor x{scale} evaluation files; "
            "give the one that Set5, Set14, ... lie in, or the scale of its files"
        )
    return sorted([*folders, *files], key=lambda path: _sort_key(_name(path, scale)))


def _has_images(folder: Path) -> bool:
    try:
        return os.path.isdir(folder) and any(
            path.suffix.lower() in _IMAGES and not path.name.startswith(".") for path in folder.iterdir()
        )
    except OSError as error:
        raise UserError(
            f"--data: {folder} cannot be read ({error.strerror}); make it readable, or name the sets with --eval-file"
        ) from None


def _is_evaluation_file(path: Path, scale: int) -> bool:
    """Return whether the path is an evaluation h5 for this scale. Print why an h5 cannot be used."""
    named_scale = re.search(r"_x(\d)$", path.stem)
    if path.suffix != ".h5" or (named_scale and int(named_scale[1]) != scale):
        return False
    try:
        five_crops = _looks_like_five_crops(PairedH5(path, scale))
    except UserError as error:
        print_line(f"left out: {error}")
        return False
    if five_crops:
        print_line(
            f"left out: {path}: made for training, as it seems: five crops of each image; "
            "give it to --eval-file if it is not"
        )
    return not five_crops


def _looks_like_five_crops(pairs: PairedH5) -> bool:
    """Return whether every five images in a row have one size, as in training files."""
    return len(pairs) % 5 == 0 and bool((pairs.sizes.reshape(-1, 5, 2) == pairs.sizes[::5, None]).all())


def _sort_key(name: str) -> tuple[int, str]:
    known = [i for i, start in enumerate(_ORDER) if name.lower().startswith(start)]
    return (known or [len(_ORDER)])[0], name


def _name(path: Path, scale: int) -> str:
    """Return the dataset's name: Set5 for Set5/, Set5/HR/ (EDSR-PyTorch's), Set5/image_SRF_2/ and Set5_x2.h5."""
    path = Path(os.path.abspath(path))
    if os.path.isdir(path):
        return printable(path.parent.name if re.fullmatch(r"HR|GTmod12|image_SRF_\d", path.name) else path.name)
    return printable(path.stem.removesuffix(f"_x{scale}"))
