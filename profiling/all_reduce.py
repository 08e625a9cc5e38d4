"""`python -m profiling.all_reduce FOLDER`: how far float16 and bfloat16 all-reduces are from exact ones.

Eight ranks' gradients of the shipped weights, and of new ones, on patches of FOLDER's pictures: float32, scaled as in
training. Their mean as ranks in a ring form it, each term and each sum rounded, against the mean in float64.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.tables import markdown
from rdn_fast.model import RDN, infer_config
from rdn_fast.training.losses import weighted_loss
from rdn_fast.weights.load import load_tensors
from rdn_fast.weights.shipped import select

RANKS, PATCHES, PATCH = 8, 4, 32  # LR pixels
SCALES = (1024.0, 1.0)
Gradients = list[torch.Tensor]


def batch(files: list[Path], dice: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Return PATCHES random patches, LR and HR, of different pictures where there are enough."""
    pairs = []
    for file in dice.choices(files, k=PATCHES):
        with Image.open(file) as picture:
            left, top = (dice.randrange(size - 2 * PATCH + 1) for size in picture.size)
            hr = picture.convert("RGB").crop((left, top, left + 2 * PATCH, top + 2 * PATCH))
        pairs.append((hr.resize((PATCH, PATCH), Image.Resampling.BICUBIC), hr))
    lr, hr = (np.stack([np.asarray(image) for image in images]) for images in zip(*pairs, strict=True))
    return tuple(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 for images in (lr, hr))


def gradients(model: RDN, lr: torch.Tensor, hr: torch.Tensor, scale: float) -> Gradients:
    """Return what a rank sends: gradients of its share of the loss, times the ranks and the loss scale."""
    loss = weighted_loss(model(lr), hr, 1 / (RANKS * hr.numel())) * RANKS * scale
    return list(torch.autograd.grad(loss, list(model.parameters())))


def mean(ranks: list[Gradients], dtype: torch.dtype) -> Gradients:
    """Return the mean of ranks' gradients, in `dtype` from the first term to the last sum."""
    found = []
    for terms in zip(*ranks, strict=True):
        total, *others = (term.to(dtype) / RANKS for term in terms)
        for other in others:
            total = total + other
        found.append(total)
    return found


def errors(ranks: list[Gradients], dtype: torch.dtype) -> tuple[float, float]:
    """Return the error of all gradients together, relative to their norm, and that of the worst tensor."""
    exact = mean(ranks, torch.float64)
    off = torch.stack([(a - b).norm() for a, b in zip(mean(ranks, dtype), exact, strict=True)])
    size = torch.stack([gradient.norm() for gradient in exact])
    return (off.norm() / size.norm()).item(), (off / size).max().item()


def table(files: list[Path]) -> str:
    shipped = select()
    state, _ = load_tensors(shipped.file)
    torch.manual_seed(0)
    new, trained = (RDN(infer_config(state, shipped.name), "naive") for _ in range(2))
    trained.load_state_dict(state)
    rows = []
    for name, model in (("shipped weights", trained), ("new weights", new)):
        for scale in SCALES:
            dice = random.Random(0)
            ranks = [gradients(model, *batch(files, dice), scale) for _ in range(RANKS)]
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                cells = (f"{error:.1e}" for error in errors(ranks, dtype))
                rows.append([name, f"{scale:.0f}", str(dtype).removeprefix("torch."), *cells])
    return markdown(["gradients of", "loss scale", "sent in", "error of all", "of the worst tensor"], rows)


def main(argv: list[str] | None = None) -> None:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m profiling.all_reduce", description=__doc__, formatter_class=kind)
    parser.add_argument("folder", type=Path)
    files = sorted(file for file in parser.parse_args(argv).folder.rglob("*") if file.suffix in (".png", ".jpg"))
    if not files:
        raise SystemExit("no .png or .jpg pictures there")
    print(table(files))


if __name__ == "__main__":
    main()
