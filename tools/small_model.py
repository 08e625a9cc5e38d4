"""Train the small x2 model that comes with the package: `python -m tools.small_model KODAK24_FOLDER [--outputs-dir DIR] [train's flags]`.

Only photographs of unrestricted use: Kodak's 24 and four of scikit-image's (each states its public domain or CC0 in scikit-image's
documentation). Each is used in three sizes, because a photograph made smaller is sharper and has more of what is to be learnt. The
weights are those of the last step, so that no evaluation set has any say in them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from rdn_fast.cli import main
from rdn_fast.data.prepare import Pair, degrade, image_files, read_image, write_pairs
from rdn_fast.demo import photographs

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
SIZES = (1.0, 0.8, 0.6)
_TILE, _STRIDE, _SCALE = 96, 64, 2  # tile and stride in LR pixels


def prepare(kodak: Path, train_file: Path) -> int:
    """Write the training h5; returns its number of tiles. Each epoch takes one patch from every tile."""
    folder = photographs(PHOTOGRAPHS)
    paths = [*image_files(kodak), *(folder / name for name in PHOTOGRAPHS)]
    return write_pairs(train_file, (tile for path in paths for tile in _tiles(path)), "--outputs-dir")


def _tiles(path: Path) -> list[Pair]:
    image, tiles = Image.fromarray(read_image(path)), []
    for size in SIZES:
        smaller = image.resize([round(edge * size) for edge in image.size], Image.Resampling.LANCZOS) if size != 1 else image
        pair = degrade(path.stem, np.asarray(smaller), _SCALE)  # before it is cut: a tile's borders are no image's
        for top, left in ((y, x) for y in _starts(pair.lr.shape[0]) for x in _starts(pair.lr.shape[1])):
            lr, hr = (part[f * top : f * (top + _TILE), f * left : f * (left + _TILE)] for part, f in ((pair.lr, 1), (pair.hr, _SCALE)))
            tiles.append(Pair(f"{path.stem} {size} {top},{left}", lr, hr))
    return tiles


def _starts(edge: int) -> list[int]:
    """Where tiles begin along an edge; the last one ends with it."""
    return sorted({*range(0, edge - _TILE + 1, _STRIDE), max(0, edge - _TILE)})


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("kodak", type=Path, help="folder with Kodak's 24 photographs")
    parser.add_argument("--outputs-dir", type=Path, default=Path("outputs/small"))
    options, flags = parser.parse_known_args()
    train_file = options.outputs_dir / "photographs_x2.h5"
    if not train_file.exists():
        print(f"{train_file}: {prepare(options.kodak, train_file)} tiles")
    return main(["train", "--preset", "small", "--train-file", str(train_file), "--outputs-dir", str(options.outputs_dir), *flags])


if __name__ == "__main__":
    raise SystemExit(run())
