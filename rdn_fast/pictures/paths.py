"""Which files are up-scaled, where each result goes, and which are left out. Names are checked before any work."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from rdn_fast.data.image_formats import picture_extensions
from rdn_fast.data.plugins import remedy_for_extension
from rdn_fast.errors import UserError, why_no_file
from rdn_fast.pictures.formats import FORMATS, why_not_written

_LONGEST = 240  # bytes of a result's name: file systems take 255, and the temporary file's name is longer


class Job(NamedTuple):
    source: Path
    target: Path

    @property
    def format(self) -> str:
        return FORMATS[self.target.suffix.lower()]


class Plan(NamedTuple):
    jobs: list[Job]
    refused: dict[Path, str]  # pictures whose results cannot be written and folders that cannot be read, and why


class _Found(NamedTuple):
    path: Path
    folder: Path  # its folder relative to the input folder, or to the part of the pattern that is there
    named: bool  # given by the user as a file


def plan(inputs: list[str], output: str, suffix: str, ext: str, recursive: bool, say: Callable[[str], None]) -> Plan:
    """Return the pictures of files, folders and glob patterns, each once, with the name of each result.

    output: a folder, or a file for a single picture. suffix: added to names as _SUFFIX; "" adds nothing.
    ext: png, jpg, webp, tif, avif, heic, jxl, or auto for the picture's own format, png where that is not written.
    recursive: look into subfolders; their structure is kept below `output`, as that of the folders that a pattern
    matches. say: called with one line when earlier results among the inputs are left out, and for the files of a folder
    that have no picture's extension.
    Raises UserError, in one line, for names that cannot be used, also when no picture's result can be written.
    """
    if "/" in suffix or os.sep in suffix:
        raise UserError(f"--suffix {suffix}: becomes part of a file's name; leave out the {os.sep}")
    if ext != "auto" and (reason := why_not_written(FORMATS[f".{ext}"])):
        raise UserError(f"--ext {ext}: cannot be written here; {reason}")
    out = Path(output)
    by_location: dict[Path, _Found] = {}
    refused: dict[Path, str] = {}
    for text in inputs:
        for entry in _find(text, recursive, out, say, refused):
            first = by_location.setdefault(_location(entry.path), entry)
            by_location[_location(entry.path)] = first._replace(named=first.named or entry.named)
    found = list(by_location.values())
    if _extension(out) in picture_extensions() | set(FORMATS) and not os.path.isdir(out):
        return Plan([_single_job(found, out, ext)], refused)
    if os.path.exists(out) and not os.path.isdir(out):
        raise UserError(f"-o {out}: is a file; give a folder, or a name that ends in .png, .jpg, .webp or .tif")
    tail = f"_{suffix}" if suffix else ""
    if tail:
        found = _leave_out_results(found, out, tail, say)
    jobs = [Job(path, out / folder / f"{path.stem}{tail}{_target_extension(path, ext)}") for path, folder, _ in found]
    refused |= (misnamed := _check_names(jobs))
    if len(misnamed) == len(jobs):
        source, reason = next(iter(refused.items()))
        raise UserError(f"{source}: {reason}")
    return Plan([job for job in jobs if job.source not in refused], refused)


def _find(
    text: str, recursive: bool, out: Path, say: Callable[[str], None], refused: dict[Path, str]
) -> Iterator[_Found]:
    path = Path(text)
    if os.path.isdir(path):
        others: Counter[str] = Counter()
        pictures = list(_pictures_of_folder(path, recursive, _real(out), others, refused))
        kinds = ", ".join(f"{count} {_with_remedy(kind)}" for kind, count in sorted(others.items()))
        if not pictures:
            deeper = "" if recursive else " itself; --recursive looks into those in it"
            raise UserError(f"-i {text}: no pictures in this folder{deeper}" + (f" ({kinds})" if kinds else ""))
        if kinds:
            say(f"left out of {text}: {kinds}; a file that is named is tried, whatever its extension")
        yield from pictures
    elif os.path.lexists(path):
        yield _Found(path, Path(), True)
    elif glob.has_magic(text):
        folder = _folder_of_pattern(path)
        matches = [Path(match) for match in sorted(glob.glob(_pattern(path, folder), recursive=True))]
        pictures = [
            match for match in matches if not os.path.isdir(match) and _extension(match) in picture_extensions()
        ]
        if not pictures:
            closed = "" if os.access(folder, os.R_OK | os.X_OK) else f"; {folder} cannot be read"
            raise UserError(f"-i {text}: no file with a picture's name matches{closed}")
        for match in pictures:
            yield _Found(match, match.parent.relative_to(folder) if recursive else Path(), False)
    else:
        flaw = why_no_file(path)
        raise UserError(f"-i {text}: {'no such file or folder' if flaw == 'no such file' else flaw}")


def _pattern(path: Path, folder: Path) -> str:
    """Return the path as a glob pattern in which its part that is there, such as `shots [2024]`, means itself."""
    rest = path.relative_to(folder)
    return os.path.join(glob.escape(str(folder)), rest)


def _folder_of_pattern(path: Path) -> Path:
    return next(parent for parent in path.parents if os.path.isdir(parent) or parent == parent.parent)


def _pictures_of_folder(
    top: Path, recursive: bool, out: Path, others: Counter[str], refused: dict[Path, str]
) -> Iterator[_Found]:
    """Yield the files with a picture's extension, leaving out hidden files and folders and the results' folder.

    others: gets the number of other files by extension, and of folders. refused: gets the folders inside that cannot be
    read, and why.
    """

    def unreadable(error: OSError) -> None:
        reason = f"cannot be read ({error.strerror}); make it readable, or leave it out"
        if Path(error.filename) == top:
            raise UserError(f"-i {top}: {reason}")
        refused[Path(error.filename)] = reason

    for root, folders, names in os.walk(top, onerror=unreadable):
        here = Path(root)
        visible = [name for name in sorted(folders) if not name.startswith(".")]
        visible = [name for name in visible if _real(here / name) != out]
        folders[:] = visible if recursive else []
        if len(visible) > len(folders):
            others["folders (--recursive)"] = len(visible)
        for name in sorted(names):
            if name.startswith("."):
                continue
            if (extension := _extension(Path(name))) in picture_extensions():
                yield _Found(here / name, here.relative_to(top), False)
            else:
                others[extension or "without extension"] += 1


def _with_remedy(kind: str) -> str:
    """Return the extension of files that are left out, with what to install to read them."""
    remedy = remedy_for_extension(kind)
    return f"{kind} ({remedy})" if remedy else kind


def _location(path: Path) -> Path:
    """Return the path with only its folder resolved: a symbolic link to a picture is one more picture."""
    return _real(path.parent) / path.name


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve() raises for a link to itself


def _extension(path: Path) -> str:
    return path.suffix.lower()


def _target_extension(path: Path, ext: str) -> str:
    if ext != "auto":
        return f".{ext}"
    format = FORMATS.get(_extension(path))
    return path.suffix if format and not why_not_written(format) else ".png"


def _single_job(found: list[_Found], out: Path, ext: str) -> Job:
    if _extension(out) not in FORMATS:
        raise UserError(
            f"-o {out}: we write png, jpg, webp, tif, avif, heic and jxl; give one of these names, or a folder"
        )
    if ext != "auto" and FORMATS[f".{ext}"] != FORMATS[_extension(out)]:
        raise UserError(f"-o {out} and --ext {ext} contradict each other; leave out --ext")
    if reason := why_not_written(FORMATS[_extension(out)]):
        raise UserError(f"-o {out}: cannot be written here; {reason}")
    if len(found) > 1:
        raise UserError(f"-o {out}: is one file, and there are {len(found)} pictures; give a folder")
    job = Job(found[0].path, out)
    for source, reason in _check_names([job]).items():
        raise UserError(f"{source}: {reason}")
    return job


def _leave_out_results(found: list[_Found], out: Path, tail: str, say: Callable[[str], None]) -> list[_Found]:
    """Drop earlier results: files at the place and of the name that the result of another found picture gets."""
    results = {_real(out / folder) / f"{path.stem}{tail}" for path, folder, _ in found}
    kept = [entry for entry in found if entry.named or _real(entry.path.parent) / entry.path.stem not in results]
    if len(kept) < len(found):
        say(f"left out: {len(found) - len(kept)} pictures named *{tail}.*, the results of others beside them")
    return kept


def _check_names(jobs: list[Job]) -> dict[Path, str]:
    """Return the sources whose results cannot be written, and why."""
    sources = {path for job in jobs for path in (_location(job.source), _real(job.source))}
    sources_of: dict[Path, list[Path]] = {}
    for source, target in jobs:
        sources_of.setdefault(_location(target), []).append(source)
    refused = {}
    for source, target in jobs:
        others = [other for other in sources_of[_location(target)] if other != source]
        if len(os.fsencode(target.name)) > _LONGEST:
            reason = f"the name of its result {target} is too long; give a shorter --suffix, or rename it"
        elif _location(target) in sources:
            remedy = "give another -o or --suffix"
            reason = f"its result {target} would take the place of a picture to up-scale; {remedy}"
        elif others:
            remedy = "rename one, or up-scale them into different folders"
            reason = f"{others[0]} would become {target}, too; {remedy}"
        elif os.path.isdir(target):
            reason = f"its result {target} is a folder; give another -o or --suffix"
        else:
            continue
        refused[source] = reason
    return refused
