"""Which picture of one folder belongs to which HR picture of another, by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rdn_fast.errors import UserError

# Ends of HR names that say no more than what the file is: baby_HR, baby_GT, img_001_SRF_2_HR, 0801x2.
_ENDS = re.compile(r"(?<=.)([ _.-]?(HR|GT|original)|[ _.-](SRF_\d|mod\d*|X\d)|(?<=\d)X\d)$", re.IGNORECASE)
_REST = re.compile(r"([^0-9A-Za-z]|X\d).*", re.IGNORECASE)  # what may follow an HR name: _x2_SR, -rdn, x4
_SCALE = re.compile(r"(?:[xX]|SRF_)([2348])(?![0-9A-Za-z])")
_FEW = 5  # names in a line


def match(files: Sequence[Path], hr: Sequence[Path]) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Return pairs (file, HR) in the order of `hr`, and the files of both that have no partner.

    files: results, or LR pictures. An equal name goes first; else a file's name is the longest possible HR name and
    something behind it. Raises UserError where two files have one partner, or one file has two.
    """
    names, stems, bases = ({} for _ in range(3))
    for file in hr:
        for key, known in ((file.name, names), (file.stem, stems), (_base(file.stem), bases)):
            known.setdefault(key, []).append(file)

    def candidates(file: Path) -> list[Path]:
        stem, base = file.stem, _base(file.stem)
        found = names.get(file.name) or stems.get(stem) or stems.get(base) or bases.get(base)
        for length in () if found else range(len(stem) - 1, 0, -1):
            start = stem[:length]
            if start in bases and _REST.fullmatch(stem, length):
                return stems.get(start) or bases[start]
        return found or []

    partner: dict[Path, Path] = {}
    for file in files:
        found = candidates(file)
        if len(found) > 1:
            raise UserError(
                f"{file}: may belong to {found[0].name} or to {found[1].name}; rename or remove one of them"
            )
        if not found:
            continue
        if (other := partner.get(found[0])) is not None:
            raise UserError(
                f"{file}: {other.name} and {file.name} both look like {found[0].name}; "
                "give a folder with one of them for each picture"
            )
        partner[found[0]] = file
    pairs = [(partner[file], file) for file in hr if file in partner]
    matched = {file for pair in pairs for file in pair}
    return pairs, [file for file in (*files, *hr) if file not in matched]


def lines_on(alone: Sequence[Path]) -> list[str]:
    """Return lines about files without partner: each is named, or of many in a folder some are, and all are counted."""
    folders: dict[Path, list[Path]] = {}
    for file in alone:
        folders.setdefault(file.parent, []).append(file)
    lines = []
    for folder, files in folders.items():
        if len(files) <= _FEW:
            lines += [f"no partner: {file}" for file in files]
        else:
            some = ", ".join(file.name for file in files[:_FEW])
            lines.append(f"no partner: {len(files)} files of {folder}: {some}, ...")
    return lines


def scales_in(name: str) -> set[int]:
    """Return the scales that the name of a file or folder tells, as x2, X4 or SRF_3."""
    return {int(scale) for scale in _SCALE.findall(name)}


def _base(stem: str) -> str:
    while (shorter := _ENDS.sub("", stem)) != stem:
        stem = shorter
    return stem
