"""`rdn-fast prepare`: a folder of images -> an h5 file in the reference's format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from rdn_fast.data.degradation import LR_MADE_BY, PLAIN, Degradation
from rdn_fast.data.given_lr import GivenLR, find_lr
from rdn_fast.data.h5_writer import write_pairs
from rdn_fast.data.images import folders_inside, image_files, read_image
from rdn_fast.data.pairs import Pair, degrade, five_crops, five_crops_of_pair
from rdn_fast.errors import UserError
from rdn_fast.ordered_map import ordered_map
from rdn_fast.terminal import Bar, print_line


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
) -> None:
    """Write an h5 file from the images of a folder: five half-size crops an image, or with `evaluation` whole images.

    compat: resize HR images to multiples of the scale, as yjn870's code does, instead of cropping them.
    strict: raise UserError for a file that cannot be read or has no partner, instead of printing and skipping it.
    recursive: take the images of all folders inside, too; without, one line says that they are passed over.
    attributes: of the file's root. degradation: how LR images are made; the file's attribute lr_made_by says it.
    lr_dir: a folder of LR pictures, taken instead of making them; with compat an error. Matched by GivenLR.
    Raises UserError, and writes nothing, also when no image is left.
    """
    if lr_dir is not None and compat:
        raise UserError(
            f"--yjn870-compat: a resized HR does not fit the LR pictures of --lr-dir {lr_dir}; leave it out"
        )
    degradation.check_scale(scale)
    given = None if lr_dir is None else GivenLR(images_dir, lr_dir, scale, print_line, strict, recursive)
    paths, skipped = image_files(images_dir, recursive) if given is None else [*given.files], []
    if given is None and degradation == PLAIN:
        for folder in find_lr(images_dir, scale):
            print_line(f"{folder}: holds LR pictures; prepare --lr-dir and train --train-lr-dir take them")
    if not recursive and (number := folders_inside(images_dir)):
        print_line(f"{images_dir}: {number} folders in it are passed over; prepare --recursive takes their images, too")

    def load(path: Path) -> list[Pair] | str:
        try:
            name = str(path.relative_to(images_dir).with_suffix("")) if recursive else path.stem
            if given is not None:
                pair = given.read(name, path)
                return [pair] if evaluation else five_crops_of_pair(pair)
            image = read_image(path)
            if evaluation:
                return [degrade(name, image, scale, compat, degradation)]
            return [
                degrade(f"{name} (crop {k})", crop, scale, compat, degradation)
                for k, crop in enumerate(five_crops(image))
            ]
        except ValueError as error:
            return f"{path}: {error}"

    def pairs() -> Iterator[Pair | None]:
        with Bar("images", len(paths)) as bar:
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
            raise UserError(f"{images_dir}: none of its {len(paths)} files is an image that can be used")

    made_by = (given or degradation).in_words
    written = write_pairs(output_path, pairs(), {LR_MADE_BY: made_by, **(attributes or {})})
    told = "" if given is None and degradation == PLAIN else f", LR from {made_by}"
    used = f"{len(paths) - len(skipped)} images at x{scale}{told}, {len(skipped)} files skipped"
    print_line(f"{output_path}: {written} pairs from {used}")
