"""`rdn-fast prepare`: a folder of images -> an h5 file in the reference's layout."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from rdn_fast.data.h5_writer import write_pairs
from rdn_fast.data.images import image_files, read_image
from rdn_fast.data.pairs import Pair, degrade, five_crops
from rdn_fast.errors import UserError
from rdn_fast.ordered_map import ordered_map
from rdn_fast.terminal import Bar


def prepare(
    images_dir: str | Path,
    output_path: str | Path,
    scale: int,
    evaluation: bool = False,
    compat: bool = False,
    strict: bool = False,
    flags: tuple[str, str] = ("--images-dir", "--output-path"),
    attributes: Mapping[str, str] | None = None,
) -> None:
    """Write `output_path` from the images of a folder: five half-size crops per image, or with `evaluation` the whole image.

    Unreadable files are named and skipped; with `strict`, or when nothing is left, they are a UserError and nothing is written.
    `flags` are what the user gave for the two paths; `attributes` go to the root of the file.
    """
    paths = image_files(images_dir)
    skipped = []

    def load(path: Path) -> list[Pair] | str:
        try:
            image = read_image(path)
            if evaluation:
                return [degrade(path.stem, image, scale, compat)]
            return [degrade(f"{path.stem} (crop {k})", crop, scale, compat) for k, crop in enumerate(five_crops(image))]
        except ValueError as error:
            return f"{path}: {error}"

    def pairs() -> Iterator[Pair | None]:
        with warnings.catch_warnings(), Bar("images", len(paths)) as bar:
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files; what cannot be read is named below
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
            raise UserError(f"{flags[0]} {images_dir}: none of its {len(paths)} files is an image that can be used")

    written = write_pairs(output_path, pairs(), flags[1], attributes)
    print(
        f"{output_path}: {written} pairs from {len(paths) - len(skipped)} images at x{scale}, {len(skipped)} files skipped"
    )
