"""Train the small x2 model that comes with the package.

    python -m tools.small_model KODAK24_FOLDER [--outputs-dir DIR] [train's flags]

It learns from photographs of unrestricted use only: Kodak's 24, and four of scikit-image's whose documentation states
public domain or CC0. The weights are those of the last step, so no evaluation set has influenced them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rdn_fast.cli import main
from rdn_fast.commands.demo import photographs
from rdn_fast.config import PRESETS
from rdn_fast.data.images import image_files
from tools.photographs import write_tiles

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("kodak", type=Path, help="folder with Kodak's 24 photographs")
    parser.add_argument("--outputs-dir", type=Path, default=Path("outputs/small"))
    options, flags = parser.parse_known_args()
    train_file = options.outputs_dir / "photographs_x2.h5"
    if not train_file.exists():
        folder = photographs(PHOTOGRAPHS)
        paths = [*image_files(options.kodak), *(folder / name for name in PHOTOGRAPHS)]
        print(f"{train_file}: {write_tiles(paths, train_file, PRESETS['small']['patch_size']).pairs} tiles")
    paths = ("--train-file", str(train_file), "--outputs-dir", str(options.outputs_dir))
    return main(["train", "--preset", "small", *paths, *flags])


if __name__ == "__main__":
    raise SystemExit(run())
