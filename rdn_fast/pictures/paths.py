"""Which files are up-scaled, and where each result goes: all that can be wrong with names is found before any work."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from rdn_fast.data.images import safe_formats
from rdn_fast.errors import UserError
from rdn_fast.pictures.picture import FORMATS

_LONGEST = 240  # bytes of a name: file systems take 255, and it is first written under a longer one


class Job(NamedTuple):
    source: Path
    target: Path

    @property
    def format(self) -> str:
        return FORMATS[self.target.suffix.lower()]


class _Found(NamedTuple):
    path: Path
    folder: Path  # its folder under the one that was given
    named: bool  # by the user, as a file


def plan(
    inputs: list[str], output: str, suffix: str, ext: str, recursive: bool, say: Callable[[str], None]
) -> list[Job]:
    """The pictures of files, folders and glob patterns, each once, and their results' names. UserError for names that cannot be."""
    if "/" in suffix or os.sep in suffix:
        raise UserError(f"--suffix {suffix}: becomes part of a file's name; leave out the {os.sep}")
    out = Path(output)
    by_place: dict[Path, _Found] = {}
    for text in inputs:
        for entry in _find(text, recursive, out):
            first = by_place.setdefault(_place(entry.path), entry)
            by_place[_place(entry.path)] = first._replace(named=first.named or entry.named)
    found = list(by_place.values())
    if _extension(out) in _readable() | set(FORMATS) and not out.is_dir():
        return [_to_one_file(found, out, ext)]
    if out.exists() and not out.is_dir():
        raise UserError(f"-o {out}: is a file; give a folder, or a name that ends in .png, .jpg, .webp or .tif")
    tail = f"_{suffix}" if suffix else ""
    if tail:
        found = _without_results(found, out, tail, say)
    jobs = [Job(path, out / folder / f"{path.stem}{tail}{_target_extension(path, ext)}") for path, folder, _ in found]
    _check_names(jobs)
    return jobs


def _find(text: str, recursive: bool, out: Path) -> Iterator[_Found]:
    path = Path(text)
    if path.is_dir():
        pictures = list(_walk(path, recursive, out.resolve()))
        if not pictures:
            raise UserError(
                f"-i {text}: no pictures in this folder{'' if recursive else ' itself; --recursive looks into those in it'}"
            )
        yield from pictures
    elif os.path.lexists(path):
        yield _Found(path, Path(), True)
    elif glob.has_magic(text):
        matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
        pictures = [match for match in matches if match.is_file() and _extension(match) in _readable()]
        if not pictures:
            raise UserError(f"-i {text}: no file with a picture's name matches")
        yield from (_Found(match, Path(), False) for match in pictures)
    else:
        raise UserError(f"-i {text}: no such file or folder")


def _walk(top: Path, recursive: bool, out: Path) -> Iterator[_Found]:
    """Files with a picture's extension; hidden ones are left out, and what lies in the folder of the results below `top`."""

    def unreadable(error: OSError) -> None:
        raise UserError(f"-i {error.filename}: cannot be read ({error.strerror}); make it readable, or leave it out")

    for root, folders, names in os.walk(top, onerror=unreadable):
        here = Path(root)
        folders[:] = (
            [name for name in sorted(folders) if not name.startswith(".") and (here / name).resolve() != out]
            if recursive
            else []
        )
        for name in sorted(names):
            if not name.startswith(".") and _extension(Path(name)) in _readable():
                yield _Found(here / name, here.relative_to(top), False)


@cache
def _readable() -> set[str]:
    formats = set(safe_formats())
    return {extension for extension, name in Image.registered_extensions().items() if name in formats}


def _place(path: Path) -> Path:
    """Two names of one file (a symbolic link) are two places, and become two results; two ways to one name are one."""
    return path.parent.resolve() / path.name


def _extension(path: Path) -> str:
    return path.suffix.lower()


def _target_extension(path: Path, ext: str) -> str:
    if ext != "auto":
        return f".{ext}"
    return path.suffix if _extension(path) in FORMATS else ".png"


def _to_one_file(found: list[_Found], out: Path, ext: str) -> Job:
    if _extension(out) not in FORMATS:
        raise UserError(f"-o {out}: we write png, jpg, webp and tif; give one of these names, or a folder")
    if ext != "auto" and FORMATS[f".{ext}"] != FORMATS[_extension(out)]:
        raise UserError(f"-o {out} and --ext {ext} contradict each other; leave out --ext")
    if len(found) > 1:
        raise UserError(f"-o {out}: is one file, and there are {len(found)} pictures; give a folder")
    job = Job(found[0].path, out)
    _check_names([job])
    return job


def _without_results(found: list[_Found], out: Path, tail: str, say: Callable[[str], None]) -> list[_Found]:
    """Without earlier results, which lie where the results of others that were found go, and are named like them."""
    results = {(out / folder).resolve() / f"{path.stem}{tail}" for path, folder, _ in found}
    kept = [entry for entry in found if entry.named or entry.path.parent.resolve() / entry.path.stem not in results]
    if len(kept) < len(found):
        say(f"left out: {len(found) - len(kept)} pictures named *{tail}.*, the results of others beside them")
    return kept


def _check_names(jobs: list[Job]) -> None:
    sources = {path for job in jobs for path in (_place(job.source), job.source.resolve())}
    targets: dict[Path, Path] = {}
    for source, target in jobs:
        if len(os.fsencode(target.name)) > _LONGEST:
            raise UserError(
                f"{source}: the name of its result {target} is too long; give a shorter --suffix, or rename it"
            )
        place = _place(target)
        if place in sources:
            raise UserError(
                f"{source}: its result {target} would take the place of a picture to up-scale; give another -o or --suffix"
            )
        if (other := targets.setdefault(place, source)) != source:
            raise UserError(
                f"{other} and {source} would both become {target}; rename one, or up-scale them into different folders"
            )
        if target.is_dir():
            raise UserError(f"{source}: its result {target} is a folder; give another -o or --suffix")
