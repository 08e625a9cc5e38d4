"""Make a training h5 of overlapping tiles from folders of photographs.

    python -m tools.photographs FOLDER... --output-path FILE.h5 [--unseen FOLDER...]

Tiles, because an epoch takes one patch per image: so every part of a large photograph counts as much as one of a small
photograph. Three sizes of each, because a reduced photograph is sharper and has more detail to learn. Collections of
photographs overlap: what looks like an image of an --unseen folder, say Set5, is left out and named.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rdn_fast.config import make_configs
from rdn_fast.data.degradation import LR_MADE_BY, PLAIN
from rdn_fast.data.h5_writer import write_pairs
from rdn_fast.data.images import image_files, read_image
from rdn_fast.data.pairs import Pair, degrade
from rdn_fast.errors import UserError, naming_flag
from rdn_fast.ordered_map import ordered_map
from rdn_fast.terminal import Bar

SIZES = (1.0, 0.8, 0.6)
SCALE = 2
_TILE, _STRIDE = 96, 64  # LR pixels
_THUMBNAIL = 24  # pixels
_ALIKE = 0.96  # correlation of two thumbnails; different images that resemble each other had up to 0.94


def write_tiles(paths: Sequence[Path], train_file: Path, patch: int) -> int:
    """Write the tiles of these images in every size and return how many. Sizes below `patch` LR pixels are left out.

    An image smaller than a tile is one tile. Raises UserError for a file that is no image, when there is nothing to
    write, and when it cannot be written.
    """

    def tiles(path: Path) -> list[Pair]:
        image = _read(path)
        return [tile for size in SIZES for tile in _tiles(path.stem, _resized(image, size), patch)]

    workers = os.cpu_count() or 1
    with Bar("photographs", len(paths)) as bar:

        def pairs():
            some = False
            for path, of_one in zip(paths, ordered_map(tiles, paths, workers, ahead=2 * workers), strict=True):
                bar.advance()
                if not of_one:
                    bar.say(f"left out {path}: smaller than a patch of {patch} LR pixels")
                some = some or bool(of_one)
                yield from of_one
            if not some:
                raise UserError(f"{train_file}: there is no picture left to put into it; give others")

        with naming_flag("--output-path", train_file):
            return write_pairs(train_file, pairs(), {LR_MADE_BY: PLAIN.in_words})


def alike(paths: Sequence[Path], unseen: Sequence[Path]) -> dict[Path, Path]:
    """Return {image: the one of `unseen` that it shows as a whole}, in any size, also mirrored. Crops are not found."""
    if not unseen:
        return {}
    plain = [_thumbnail(path) for path in unseen]
    theirs = np.stack([thumbnail for each in plain for thumbnail in (each, each[:, ::-1])])
    found, workers = {}, os.cpu_count() or 1
    with Bar("looked at", len(paths)) as bar:
        for path, ours in zip(paths, ordered_map(_thumbnail, paths, workers, ahead=2 * workers), strict=True):
            correlations = (theirs * ours).mean(axis=(1, 2))
            if correlations.max() > _ALIKE:
                found[path] = unseen[int(correlations.argmax()) // 2]
            bar.advance()
    return found


def _read(path: Path) -> np.ndarray:
    try:
        return read_image(path)
    except ValueError as error:
        raise UserError(f"{path}: {error}; remove or repair it") from None


def _thumbnail(path: Path) -> np.ndarray:
    """Return the image in grey, with mean 0 and variance 1: the mean of the product of two is their correlation."""
    image = Image.fromarray(_read(path)).convert("L")
    grey = np.asarray(image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX), np.float64)
    return (grey - grey.mean()) / max(grey.std(), 1e-9)


def _resized(image: np.ndarray, size: float) -> np.ndarray:
    if size == 1:
        return image
    height, width = (round(edge * size) for edge in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def _tiles(name: str, image: np.ndarray, patch: int) -> list[Pair]:
    if min(image.shape[:2]) < SCALE * patch:
        return []
    pair = degrade(name, image, SCALE)  # before cutting: bicubic must not see borders inside the image
    tiles = []
    for top in _starts(pair.lr.shape[0]):
        for left in _starts(pair.lr.shape[1]):
            lr, hr = (
                part[f * top : f * (top + _TILE), f * left : f * (left + _TILE)]
                for part, f in ((pair.lr, 1), (pair.hr, SCALE))
            )
            tiles.append(Pair(f"{name} {image.shape[1]}x{image.shape[0]} {top},{left}", lr, hr))
    return tiles


def _starts(edge: int) -> list[int]:
    """Return where tiles begin along an edge. The last one ends with it."""
    return sorted({*range(0, edge - _TILE + 1, _STRIDE), max(0, edge - _TILE)})


def main(argv: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tools.photographs", description=__doc__, formatter_class=raw)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="folders of HR photographs")
    parser.add_argument("--output-path", type=Path, required=True, metavar="FILE.h5", help="where the tiles go")
    unseen_help = "evaluation sets that the model must not have seen"
    parser.add_argument("--unseen", type=Path, nargs="+", default=[], metavar="FOLDER", help=unseen_help)
    options = parser.parse_args(argv)
    try:
        if options.output_path.suffix != ".h5":
            raise UserError(f"--output-path {options.output_path}: its name must end in .h5")
        paths, unseen = (
            [path for folder in folders for path in image_files(folder)]
            for folders in (options.folders, options.unseen)
        )
        left_out = alike(paths, unseen)
        for path, evaluated in left_out.items():
            print(f"left out {path}: it shows what {evaluated} shows")
        kept = [path for path in paths if path not in left_out]
        tiles = write_tiles(kept, options.output_path, make_configs({}, "full")[1].patch_size)
    except UserError as error:
        print(f"photographs: error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output_path}: {tiles} tiles of {len(kept)} photographs, x{SCALE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
