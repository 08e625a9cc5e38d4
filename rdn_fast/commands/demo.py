"""Two minutes from nothing to a trained RDN: scikit-image's photographs, the demo preset, a table and a picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from rdn_fast.config import make_configs
from rdn_fast.data.h5_writer import write_pairs
from rdn_fast.data.images import read_image
from rdn_fast.data.pairs import Pair, degrade
from rdn_fast.errors import UserError
from rdn_fast.evaluation.evaluate import evaluate
from rdn_fast.training.run import train

# Both views of the stereo pair are one scene: they stay on one side.
_TRAIN = ("motorcycle_left.png", "motorcycle_right.png", "coffee.png", "rocket.jpg", "ihc.png", "hubble_deep_field.jpg")
_HELD_OUT = ("astronaut.png", "chelsea.png")
_TILE, _STRIDE = 128, 64  # HR pixels
_SCALE = 2


def demo(outputs_dir: str, device: str) -> None:
    """Prepare, train, evaluate and draw under `outputs_dir`. Raises UserError without scikit-image."""
    outputs = Path(outputs_dir)
    train_file, eval_file = prepare(outputs)
    given = {"outputs_dir": str(outputs), "train_file": str(train_file), "eval_file": str(eval_file), "device": device}
    model_config, config = make_configs(given, "demo")
    print(f"training on {', '.join(_TRAIN)}; held out: {', '.join(_HELD_OUT)}", flush=True)
    train(model_config, config)

    weights, picture = str(outputs / "best.pth"), outputs / "compare.png"
    report = evaluate(weights, [str(eval_file)], device=device, figure=str(picture))
    mean = report["sets"][0]["mean"]
    gain = mean["psnr_y"] - mean["bicubic_psnr_y"]
    print(f"\nRDN is {gain:+.2f} dB from bicubic on photographs that it has never seen.")
    print(f"look at:   {picture}")
    print(f"weights:   {weights}")
    print("your own:  rdn-fast prepare --images-dir PICTURES --output-path train.h5 --scale 2")
    print(
        "           rdn-fast train --train-file train.h5 --eval-file FOLDER_OF_HR_IMAGES --preset rdn-b --outputs-dir outputs/mine"
    )


def prepare(outputs: Path) -> tuple[Path, Path]:
    """Write h5 files of the photographs to `outputs`: training tiles, and held-out pictures. Raises UserError without scikit-image."""
    folder = photographs((*_TRAIN, *_HELD_OUT))
    train_file, eval_file = outputs / "photographs_x2.h5", outputs / "held_out_x2.h5"
    write_pairs(train_file, [tile for name in _TRAIN for tile in _tiles(folder / name)], "--outputs-dir")
    write_pairs(
        eval_file, [degrade(Path(name).stem, read_image(folder / name), _SCALE) for name in _HELD_OUT], "--outputs-dir"
    )
    return train_file, eval_file


def _tiles(path: Path) -> list[Pair]:
    """Half-overlapping tiles: an epoch is one patch per tile, so a handful of photographs makes an epoch of useful length."""
    image = read_image(path)
    tops, lefts = (np.arange(0, size - _TILE + 1, _STRIDE) for size in image.shape[:2])
    return [degrade(f"{path.stem} {y},{x}", image[y : y + _TILE, x : x + _TILE], _SCALE) for y in tops for x in lefts]


def photographs(names: tuple[str, ...]) -> Path:
    """The folder of these photographs in scikit-image's wheel, found without importing it. Raises UserError when they are not there."""
    spec = importlib.util.find_spec("skimage")
    folder = Path(spec.origin).parent / "data" if spec and spec.origin else None
    if folder is None or not all((folder / name).is_file() for name in names):
        raise UserError(
            "these photographs come with scikit-image 0.26: pip install 'scikit-image==0.26.*', or use `make demo`"
        )
    return folder
