"""Files that a command of this room writes beside what it prints: checked before its work begins."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from rdn_fast.errors import UserError
from rdn_fast.files import Kind, check_replaceable, check_writable


def files_to_write(given: Mapping[str, str | None]) -> dict[str, str]:
    """Return the files that are given, by flag. Raises UserError for one that cannot be written."""
    files = {flag: file for flag, file in given.items() if file is not None}
    for flag, file in files.items():
        check_writable(file, f"{flag} {file}")
    return files


def check_no_input_is_lost(
    files: Mapping[str, str], inputs: Iterable[str | os.PathLike], kinds: Mapping[str, Kind]
) -> None:
    """Raise UserError for a file to write that is an input, is given twice, or lies in a folder that is an input.

    So for one that is there and is no earlier output. files, kinds: by flag.
    """
    taken = {os.path.realpath(path) for path in inputs}
    for flag, file in files.items():
        path = os.path.realpath(file)
        if taken & {path, *map(str, Path(path).parents)}:
            raise UserError(
                f"{flag} {file}: is read by this command, or in a set's folder, or given twice; choose another file"
            )
        taken.add(path)
        check_replaceable(file, kinds[flag], f"{flag} {file}")
