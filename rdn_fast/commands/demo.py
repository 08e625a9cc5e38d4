"""`rdn-fast demo`: two minutes from nothing to a trained RDN, on scikit-image's photographs."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

import numpy as np

from rdn_fast.config import make_configs
from rdn_fast.data.degradation import LR_MADE_BY, PLAIN
from rdn_fast.data.h5_writer import write_pairs
from rdn_fast.data.images import read_image
from rdn_fast.data.pairs import Pair, degrade
from rdn_fast.errors import Failure, Stopped, UserError, naming_flag
from rdn_fast.evaluation.evaluate import evaluate
from rdn_fast.terminal import print_line
from rdn_fast.training.run import train

# Both views of the stereo pair show one scene, so both are for training.
_TRAIN = ("motorcycle_left.png", "motorcycle_right.png", "coffee.png", "rocket.jpg", "ihc.png", "hubble_deep_field.jpg")
_HELD_OUT = ("astronaut.png", "chelsea.png")
_CROP, _STRIDE = 128, 64  # HR pixels
_SCALE = 2


def demo(outputs_dir: str, device: str) -> None:
    """Prepare data, train the demo preset, evaluate and draw, all under `outputs_dir`.

    Raises UserError without scikit-image.
    """
    outputs = Path(outputs_dir)
    train_file, eval_file = prepare(outputs)
    given = {"outputs_dir": str(outputs), "train_file": str(train_file), "eval_file": str(eval_file), "device": device}
    model_config, train_config = make_configs(given, "demo")
    print_line(f"training on {', '.join(_TRAIN)}; held out: {', '.join(_HELD_OUT)}")
    try:
        train(model_config, train_config, "demo")
    except (Stopped, Failure):
        flags = {"preset": "demo", **given, "resume": "auto"}
        words = (word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value))
        print_line(f"go on with: rdn-fast train {shlex.join(words)}")
        raise

    weights, figure = str(outputs / "best.pth"), outputs / "compare.png"
    report = evaluate(weights, [str(eval_file)], device=device, figure=str(figure))
    mean = report["sets"][0]["mean"]
    gain = mean["psnr_y"] - mean["bicubic_psnr_y"]
    print_line("")
    print_line(f"RDN is {gain:+.2f} dB from bicubic on photographs that it has never seen.")
    print_line(f"look at:   {figure}")
    print_line(f"weights:   {weights}")
    print_line(f"use it:    rdn-fast upscale -i PICTURES -o larger -w {shlex.quote(weights)}")
    print_line("your own:  rdn-fast train --preset demo --train-dir PICTURES --eval-file OTHER_PICTURES")
    print_line(f"curves:    rdn-fast report {shlex.quote(outputs_dir)}")


def prepare(outputs: Path) -> tuple[Path, Path]:
    """Write two h5 files of the photographs to `outputs`: crops for training, and held-out images.

    Raises UserError without scikit-image.
    """
    folder = photographs((*_TRAIN, *_HELD_OUT))
    train_file, eval_file = outputs / "photographs_x2.h5", outputs / "held_out_x2.h5"
    with naming_flag("--outputs-dir"):
        held_out = [degrade(Path(name).stem, read_image(folder / name), _SCALE) for name in _HELD_OUT]
        for file, pairs in (
            (train_file, [pair for name in _TRAIN for pair in _crops(folder / name)]),
            (eval_file, held_out),
        ):
            write_pairs(file, pairs, {LR_MADE_BY: PLAIN.in_words})
    return train_file, eval_file


def _crops(path: Path) -> list[Pair]:
    """Cut half-overlapping crops. An epoch is one patch per pair, so crops give a few photographs a useful epoch."""
    image = read_image(path)
    tops, lefts = (np.arange(0, size - _CROP + 1, _STRIDE) for size in image.shape[:2])
    return [degrade(f"{path.stem} {y},{x}", image[y : y + _CROP, x : x + _CROP], _SCALE) for y in tops for x in lefts]


def photographs(names: tuple[str, ...]) -> Path:
    """Return the folder of these photographs in scikit-image's wheel, found without importing it.

    Raises UserError when they are not there.
    """
    spec = importlib.util.find_spec("skimage")
    folder = Path(spec.origin).parent / "data" if spec and spec.origin else None
    if folder is None or not all((folder / name).is_file() for name in names):
        raise UserError(
            "these photographs come with scikit-image 0.26: pip install 'scikit-image==0.26.*', or use `make demo`"
        )
    return folder
