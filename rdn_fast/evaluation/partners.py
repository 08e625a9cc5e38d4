"""Which picture of one folder belongs to which of another, by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rdn_fast.errors import UserError

# Ends of HR names that say no more than what the file is: baby_HR, baby_GT, img_001_SRF_2_HR, 0801x2.
_ENDS = re.compile(r"(?<=.)([ _.-]?(HR|GT|original)|[ _.-](SRF_\d|mod\d*|X\d)|(?<=\d)X\d)$", re.IGNORECASE)
_REST = re.compile(r"([^0-9A-Za-z]|X\d).*", re.IGNORECASE)  # what may follow an HR name in an SR name: _x2_SR, -rdn, x4


def match(sr: Sequence[Path], hr: Sequence[Path]) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Return pairs (SR, HR) in the order of `hr`, and the files of both that have no partner.

    An equal name goes first; else the SR name is the longest possible HR name and something behind it.
    Raises UserError where two SR pictures have one partner.
    """
    by_stem, by_base = {file.stem: file for file in hr}, {}
    for file in hr:
        by_base.setdefault(_base(file.stem), file)
    partner: dict[Path, Path] = {}
    for file in sr:
        stem, base = file.stem, _base(file.stem)
        found = by_stem.get(stem) or by_base.get(base)
        fits = [name for name in by_base if stem.startswith(name) and _REST.fullmatch(stem, len(name))]
        if found is None and fits:
            found = by_base[max(fits, key=len)]
        if found is None:
            continue
        if (other := partner.get(found)) is not None:
            both = f"{other.name} and {file.name}"
            raise UserError(
                f"{file}: {both} both look like {found.name}; give a folder with one result of each picture"
            )
        partner[found] = file
    pairs = [(partner[file], file) for file in hr if file in partner]
    matched = {file for pair in pairs for file in pair}
    return pairs, [file for file in (*sr, *hr) if file not in matched]


def _base(stem: str) -> str:
    while (shorter := _ENDS.sub("", stem)) != stem:
        stem = shorter
    return stem
