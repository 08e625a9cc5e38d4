"""Train the small models that come with the package, on photographs whose licences allow publishing such weights.

    python -m tools.small_model PHOTOGRAPHS --scale 2 [--outputs-dir DIR] [--unseen FOLDER...] [train's flags]

PHOTOGRAPHS holds the folders CID22, CLIC2025 and Kodak24; four photographs of scikit-image are added. Pictures that are
no photographs (not_photographs.txt) are left out. Nine photographs of CID22 are held out, and are the run's validation.
x3 and x4 begin from the shipped weights of x2, which must be there. The weights are those of the last step, so no
evaluation set has influenced them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rdn_fast import cli
from rdn_fast.commands.demo import photographs
from rdn_fast.data.cuts import Cuts
from rdn_fast.data.degradation import LR_MADE_BY, PLAIN
from rdn_fast.data.h5_open import open_h5
from rdn_fast.data.images import image_files, read_image
from rdn_fast.data.pairs import Pair
from rdn_fast.data.prepare import leave_out_seen, write_images
from rdn_fast.errors import UserError

FOLDERS = ("CID22", "CLIC2025", "Kodak24")
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
NOT_PHOTOGRAPHS = Path(__file__).with_name("not_photographs.txt")
HELD_OUT = "CID22", slice(None, None, 25)  # photographs of that folder, by name

# CLIC2025's photographs have 2.8 megapixels, and are soft at their full size. A run of 1,200 steps does best with sizes
# 1 and 0.5 alone; longer ones gain by soft and by small details, too (profiling/LOG.md).
SIZES, SIZES_OF_LARGE = (1.0, 0.7), (1.0, 0.7, 0.5)
LARGE = "CLIC2025"
TILE, SMALLEST = 96, 48  # LR pixels

# x3 and x4 begin with the trunk of x2's weights. Fewer channels after up-sampling keep their files under 3 MB.
_FROM_X2 = ("--weights-file", "small_x2", "--lr", "5e-4", "--max-steps", "15000")
FLAGS = {2: (), 3: (*_FROM_X2, "--upsample-channels", "24"), 4: (*_FROM_X2, "--upsample-channels", "32")}
_MADE_FROM = "made_from"  # attribute of an h5 file's root: the photographs and sizes


def collect(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the photographs to learn from and those held out. Raises UserError if a folder is not there."""
    lines = NOT_PHOTOGRAPHS.read_text(encoding="utf-8").splitlines()
    left_out = {line for line in lines if not line.startswith("#")}
    found = {
        name: [path for path in image_files(root / name) if f"{name}/{path.stem}" not in left_out] for name in FOLDERS
    }
    name, every = HELD_OUT
    held_out = found[name][every]
    of_scikit_image = photographs(PHOTOGRAPHS)
    paths = [path for paths in found.values() for path in paths if path not in held_out]
    return paths + [of_scikit_image / name for name in PHOTOGRAPHS], held_out


def write_tiles(paths: Sequence[Path], scale: int, train_file: Path) -> None:
    """Write overlapping tiles of these photographs. Raises UserError."""
    cuts = {
        large: Cuts(scale, tile=TILE, sizes=SIZES_OF_LARGE if large else SIZES, smallest=SMALLEST)
        for large in (False, True)
    }

    def load(path: Path) -> list[Pair]:
        return cuts[path.parent.name == LARGE].of_image(path.stem, read_image(path))

    attributes = {LR_MADE_BY: PLAIN.in_words, _MADE_FROM: _in_words(paths)}
    written = write_images("PHOTOGRAPHS", paths, train_file, load, attributes, strict=True)
    print(f"{train_file}: {written.pairs} tiles of {len(paths)} photographs, x{scale}")


def write_whole(paths: Sequence[Path], scale: int, eval_file: Path) -> None:
    """Write these photographs as they are, for validation. Raises UserError."""
    cuts = Cuts(scale, whole=True)

    def load(path: Path) -> list[Pair]:
        return cuts.of_image(path.stem, read_image(path))

    write_images("PHOTOGRAPHS", paths, eval_file, load, {LR_MADE_BY: PLAIN.in_words}, strict=True)


def check_tiles(train_file: Path, paths: Sequence[Path]) -> None:
    """Raise UserError for tiles of other photographs or sizes, which an earlier call has made."""
    with open_h5(train_file) as file:
        made_from = file.attrs.get(_MADE_FROM, b"").decode()
    if made_from != _in_words(paths):
        raise UserError(f"{train_file}: holds tiles of other photographs or sizes; give another --outputs-dir")


def _in_words(paths: Sequence[Path]) -> str:
    names = " ".join(f"{path.parent.name}/{path.name}" for path in paths)
    return f"sizes {SIZES}, {LARGE} {SIZES_OF_LARGE}: {names}"


def main(argv: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m tools.small_model", description=__doc__, allow_abbrev=False, formatter_class=raw
    )
    parser.add_argument("photographs", type=Path, metavar="PHOTOGRAPHS", help="folder of the three folders")
    parser.add_argument("--scale", type=int, default=2, choices=[*FLAGS])
    parser.add_argument("--outputs-dir", type=Path, help="default: outputs/small_xSCALE")
    unseen_help = "evaluation sets that the model must not have seen"
    parser.add_argument("--unseen", type=Path, nargs="+", default=[], metavar="FOLDER", help=unseen_help)
    options, flags = parser.parse_known_args(argv)
    outputs = options.outputs_dir or Path(f"outputs/small_x{options.scale}")
    train_file, eval_file = (outputs / f"{what}_x{options.scale}.h5" for what in ("photographs", "held_out"))
    try:
        paths, held_out = collect(options.photographs)
        paths = leave_out_seen("PHOTOGRAPHS", paths, options.unseen)
        print(f"held out: {', '.join(path.stem for path in held_out)}")
        if eval_file.exists():  # the last to be written
            check_tiles(train_file, paths)
        else:
            write_tiles(paths, options.scale, train_file)
            write_whole(held_out, options.scale, eval_file)
    except UserError as error:
        print(f"small_model: error: {error}", file=sys.stderr)
        return 2
    files = ("--train-file", str(train_file), "--eval-file", str(eval_file), "--outputs-dir", str(outputs))
    return cli.main(
        ["train", "--preset", "small", "--scale", str(options.scale), *FLAGS[options.scale], *files, *flags]
    )


if __name__ == "__main__":
    raise SystemExit(main())
