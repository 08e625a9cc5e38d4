"""Make the training h5 of the shipped models: overlapping tiles of folders of photographs, in three sizes.

    python -m tools.photographs FOLDER... --output-path FILE.h5 [--unseen FOLDER...]

As `rdn-fast prepare --tiles 96 --sizes 1 0.8 0.6 --unseen ...`, from several folders, and without tiles smaller than a
patch of preset `full`. Tiles, because an epoch takes one patch per image: so every part of a large photograph counts as
much as one of a small photograph. Three sizes, because a reduced photograph is sharper and has more detail to learn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rdn_fast.config import make_configs
from rdn_fast.data.cuts import Cuts
from rdn_fast.data.degradation import LR_MADE_BY, PLAIN
from rdn_fast.data.images import image_files, read_image
from rdn_fast.data.pairs import Pair
from rdn_fast.data.prepare import Written, leave_out_seen, write_images
from rdn_fast.errors import UserError, naming_flag

SCALE = 2


def write_tiles(paths: Sequence[Path], train_file: Path, patch: int) -> Written:
    """Write the tiles of these images. Sizes below `patch` LR pixels are left out. Raises UserError."""
    cuts = Cuts(SCALE, tile=96, sizes=(1.0, 0.8, 0.6), smallest=patch)

    def load(path: Path) -> list[Pair]:
        return cuts.of_image(path.stem, read_image(path))

    with naming_flag("--output-path", train_file):
        return write_images("FOLDER", paths, train_file, load, {LR_MADE_BY: PLAIN.in_words})


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
        paths = [path for folder in options.folders for path in image_files(folder)]
        paths = leave_out_seen("FOLDER", paths, options.unseen)
        written = write_tiles(paths, options.output_path, make_configs({}, "full")[1].patch_size)
    except UserError as error:
        print(f"photographs: error: {error}", file=sys.stderr)
        return 2
    photographs = len(paths) - written.skipped
    print(f"{options.output_path}: {written.pairs} tiles of {photographs} photographs, x{SCALE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
