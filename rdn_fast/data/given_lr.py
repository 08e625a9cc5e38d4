"""LR pictures that people have beside HR pictures: the folders they lie in, and which belongs to which HR picture."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from rdn_fast.data.images import image_files, read_image
from rdn_fast.data.pairs import Pair, join
from rdn_fast.data.partners import lines_on, match, scales_in
from rdn_fast.errors import UserError
from rdn_fast.terminal import printable

# Customary folders of LR pictures, beside HR/ or inside a folder of HR pictures; {} stands for the scale.
_CUSTOMARY = ("LR_bicubic/X{}", "LR_bicubic_X{}", "LR/X{}", "LR_X{}", "LRbicX{}", "LRX{}")
_BARE = "X{}"  # where no prefix stands before it, as DIV2K_train_ does before LR_bicubic/X2
_HR_FOLDER = re.compile(r"(.*?)(HR|GT|GTmod\d+|original)", re.IGNORECASE)

GIVEN = "given pictures of"  # begins GivenLR.in_words


class GivenLR:
    """The LR pictures of a folder that belong to HR pictures by name.

    `files`: {HR file: LR file}, in the order of the HR files' paths. `in_words`: as of Degradation.
    """

    def __init__(
        self,
        hr_folder: str | Path,
        folder: str | Path,
        scale: int,
        say: Callable[[str], None],
        strict: bool = False,
        recursive: bool = False,
    ):
        """Match the names of two folders, which may be one with *_HR and *_LR in it.

        say: called with lines about files that have no partner or are of other scales, which are left out.
        strict: raise UserError for a file that has no partner.
        recursive: match pictures of folders inside, too, each with those of the folder of the same path.
        Raises UserError where no names match, or a match is ambiguous.
        """
        hr_folder, self.folder, self._scale = Path(hr_folder), Path(folder), scale
        hr = only_hr(image_files(hr_folder, recursive))
        lr = image_files(folder, recursive)
        if any(_ends(file, "_HR") for file in lr):
            lr = [file for file in lr if _ends(file, "_LR")] or lr
        if {*hr} & {*lr}:
            raise UserError(f"{folder}: holds HR and LR pictures; end their names in _HR and _LR, or part them")
        stems = {file.stem for file in hr}
        told = {file: scales_in(file.stem) for file in lr}
        if others := [file for file in lr if told[file] and scale not in told[file] and file.stem not in stems]:
            say(f"{folder}: {len(others)} pictures of other scales, as {others[0].name}, are left out")
            lr = sorted({*lr} - {*others})
        found: dict[Path, Path] = {}
        alone: list[Path] = []
        lr_in, hr_in = _by_place(lr, self.folder), _by_place(hr, hr_folder)
        for place, of_hr in hr_in.items():
            pairs, rest = match(lr_in.get(place, []), of_hr)
            found |= {hr_file: lr_file for lr_file, hr_file in pairs}
            alone += rest
        self.files = {file: found[file] for file in hr if file in found}
        known = {*self.files.values(), *alone}
        for line in lines_on([*(file for file in lr if file not in known), *alone]):
            if strict:
                raise UserError(f"{line}; mend that, or leave out --strict to go on without")
            say(line)
        if not self.files:
            raise UserError(
                f"{folder}: no name matches those of {hr_folder}; name LR pictures as HR pictures, as baby.png or "
                f"babyx{scale}.png"
            )

    @property
    def in_words(self) -> str:
        return f"{GIVEN} {printable(_called(self.folder))}"

    def read(self, name: str, hr_file: Path) -> Pair:
        """Read an HR picture and its LR picture. Raises ValueError, in a line, as read_image() and join()."""
        hr, lr_file = read_image(hr_file), self.files[hr_file]
        try:
            return join(name, read_image(lr_file), hr, self._scale)
        except ValueError as error:
            raise ValueError(f"its LR picture {lr_file}: {error}") from None


def only_hr(files: list[Path]) -> list[Path]:
    """Return the files *_HR where there are *_LR, too, as in SelfExSR's folders; else all."""
    hr = [file for file in files if _ends(file, "_HR")]
    return hr if hr and any(_ends(file, "_LR") for file in files) else files


def find_lr(hr_folder: str | Path, scale: int) -> list[Path]:
    """Return the folders of LR pictures of this scale in or beside a folder of HR pictures, by their customary names.

    SelfExSR's has its LR pictures in itself. Names of folders or pictures must tell the scale.
    """
    hr_folder = Path(hr_folder)
    if hr_folder.name in ("", ".."):
        hr_folder = Path(os.path.abspath(hr_folder))
    files = _names(hr_folder)
    told = [
        name for name in files if Path(name).stem.endswith("_LR") and scale in scales_in(f"{hr_folder.name} {name}")
    ]
    found = [hr_folder] if told and any(Path(name).stem.endswith("_HR") for name in files) else []
    places = [(hr_folder, "")]
    if beside := _HR_FOLDER.fullmatch(hr_folder.name):
        places.append((hr_folder.parent, beside[1]))
    for place, prefix in places:
        inside = _names(place, folders=True)
        for name in (*(prefix + name for name in _CUSTOMARY), *([] if prefix else [_BARE])):
            outer, _, inner = name.format(scale).casefold().partition("/")
            folders = [place / each for each in inside if each.casefold() == outer]
            if inner:
                folders = [
                    folder / each
                    for folder in folders
                    for each in _names(folder, folders=True)
                    if each.casefold() == inner
                ]
            found += [folder for folder in folders if _names(folder)]
    return found


def _by_place(files: list[Path], folder: Path) -> dict[Path, list[Path]]:
    """Return the files of each folder inside, by its path in `folder`."""
    found: dict[Path, list[Path]] = {}
    for file in files:
        found.setdefault(file.parent.relative_to(folder), []).append(file)
    return found


def _names(folder: Path, folders: bool = False) -> list[str]:
    """Return the names of files, or of folders, in a folder, without hidden ones; none where it cannot be read."""
    _, inside, files = next(os.walk(folder), ("", [], []))
    return sorted(name for name in (inside if folders else files) if not name.startswith("."))


def _called(folder: Path) -> str:
    """Return the name of a folder of LR pictures, with that of the one above where it is X2 or the like."""
    folder = Path(os.path.abspath(folder))
    return "/".join(folder.parts[-2:]) if re.fullmatch(r"[xX]\d", folder.name) else folder.name


def _ends(file: Path, end: str) -> bool:
    return file.stem.endswith(end)
