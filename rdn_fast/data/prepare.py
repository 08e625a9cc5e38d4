"""`rdn-fast prepare`: a folder of images -> an h5 file in the reference's format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rdn_fast.data.alike import alike
from rdn_fast.data.cuts import Cuts
from rdn_fast.data.degradation import LR_MADE_BY, PLAIN, Degradation
from rdn_fast.data.given_lr import GivenLR, find_lr
from rdn_fast.data.h5_writer import write_pairs
from rdn_fast.data.images import folders_inside, image_files, read_image
from rdn_fast.data.pairs import Pair
from rdn_fast.errors import UserError
from rdn_fast.ordered_map import ordered_map
from rdn_fast.terminal import Bar, print_line


class Written(NamedTuple):
    pairs: int
    skipped: int  # files


def prepare(
    images_dir: str | Path,
    output_path: str | Path,
    scale: int,
    evaluation: bool = False,
    compat: bool = False,
    strict: bool = False,
    recursive: bool = False,
    attributes: Mapping[str, str] | None = None,
    degradation: Degradation = PLAIN,
    lr_dir: str | Path | None = None,
    tile: int | None = None,
    sizes: Sequence[float] = (1.0,),
    unseen: Sequence[str | Path] = (),
) -> None:
    """Write an h5 file from the images of a folder: five half-size crops an image, or with `evaluation` whole images.

    compat: resize HR images to multiples of the scale, as yjn870's code does, instead of cropping them.
    strict: raise UserError for a file that cannot be read or has no partner, instead of printing and skipping it.
    recursive: take the images of all folders inside, too; without, one line says that they are passed over.
    attributes: of the file's root. degradation: how LR images are made; the file's attribute lr_made_by says it.
    lr_dir: a folder of LR pictures, taken instead of making them; with compat or sizes an error. Matched by GivenLR.
    tile: edge in LR pixels of overlapping tiles, instead of five crops. sizes: of HR images, as Cuts has them.
    unseen: folders of evaluation sets; an image that they show, as alike() finds it, is left out and named.
    Raises UserError, and writes nothing, also when no image is left.
    """
    cuts = Cuts(scale, evaluation, tile, tuple(sizes), compat=compat, degradation=degradation)
    if lr_dir is not None and compat:
        raise UserError(
            f"--yjn870-compat: a resized HR does not fit the LR pictures of --lr-dir {lr_dir}; leave it out"
        )
    if lr_dir is not None and cuts.sizes != (1.0,):
        raise UserError(f"--sizes: LR pictures of --lr-dir {lr_dir} have one size; leave it out")
    given = None if lr_dir is None else GivenLR(images_dir, lr_dir, scale, print_line, strict, recursive)
    paths = image_files(images_dir, recursive) if given is None else [*given.files]
    if given is None and degradation == PLAIN:
        for folder in find_lr(images_dir, scale):
            print_line(f"{folder}: holds LR pictures; prepare --lr-dir and train --train-lr-dir take them")
    if not recursive and (number := folders_inside(images_dir)):
        print_line(f"{images_dir}: {number} folders in it are passed over; prepare --recursive takes their images, too")
    paths = leave_out_seen(images_dir, paths, unseen, strict)

    def load(path: Path) -> list[Pair]:
        name = str(path.relative_to(images_dir).with_suffix("")) if recursive else path.stem
        return cuts.of_image(name, read_image(path)) if given is None else cuts.of_given(given.read(name, path))

    made_by = (given or degradation).in_words
    attributes = {LR_MADE_BY: made_by, **(attributes or {})}
    written = write_images(images_dir, paths, output_path, load, attributes, strict)
    told = "" if given is None and degradation == PLAIN else f", LR from {made_by}"
    used = f"{len(paths) - written.skipped} images at x{scale}{told}, {written.skipped} files skipped"
    print_line(f"{output_path}: {written.pairs} pairs from {used}")


def leave_out_seen(
    images: str | Path, paths: list[Path], unseen: Sequence[str | Path], strict: bool = False
) -> list[Path]:
    """Return the paths without those that a set of `unseen` shows, which are named. Raises UserError if none is left.

    images: what the error calls them all.
    """
    found = alike(paths, unseen, print_line, strict)
    for path, evaluated in found.items():
        print_line(f"left out {path}: it shows what {evaluated} shows")
    if len(found) == len(paths):
        raise UserError(f"{images}: no image is left, --unseen shows all {len(paths)}; give others")
    return [path for path in paths if path not in found]


def write_images(
    images: str | Path,
    paths: Sequence[Path],
    output_path: str | Path,
    load: Callable[[Path], list[Pair]],
    attributes: Mapping[str, str],
    strict: bool = False,
) -> Written:
    """Write load(path) of every path to an h5 file, in order. Files for which it raises ValueError are named.

    At most four files are in memory. strict: raise UserError for such a file. images: what an error calls them all.
    Raises UserError, and writes nothing, when no file can be used.
    """
    skipped = 0

    def result_of(path: Path) -> list[Pair] | str:
        try:
            return load(path)
        except ValueError as error:
            return f"{path}: {error}"

    def pairs() -> Iterator[Pair | None]:
        nonlocal skipped
        with Bar("images", len(paths)) as bar:
            for result in ordered_map(result_of, paths, workers=2, ahead=4):
                bar.advance()
                if isinstance(result, str):
                    if strict:
                        raise UserError(f"{result}; remove or repair it, or leave out --strict to skip it")
                    skipped += 1
                    bar.say(f"skipped {result}")
                    yield None
                else:
                    yield from result
        if skipped == len(paths):
            raise UserError(f"{images}: none of its {len(paths)} files is an image that can be used")

    written = write_pairs(output_path, pairs(), attributes)
    return Written(written, skipped)
