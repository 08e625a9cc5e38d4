"""PSNR and SSIM of a model over a set of images, per image and as a mean, bicubic beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.markup import escape
from rich.table import Table

from rdn_fast import metrics
from rdn_fast.checkpoint import load_weights, write_aside
from rdn_fast.data.h5 import Pairs
from rdn_fast.data.patches import to_float
from rdn_fast.data.prepare import Pair, degrade, image_files, read_image
from rdn_fast.device import memory_format, pick
from rdn_fast.errors import UserError
from rdn_fast.model import RDN, infer_config, load_state
from rdn_fast.progress import Bar, finite, print_table


def evaluate(weights_file: str, eval_file: str, scale: int | None = None, device: str = "auto", json_file: str | None = None) -> dict:
    """Print the table of a weights file over an h5 file or folder of HR images; returns (and with `json_file` writes) it as

    {"images": [{"name", "psnr_y", "psnr_y_compat", "ssim_y", "bicubic_psnr_y", "bicubic_psnr_y_compat", "bicubic_ssim_y"}], "mean": {...}}.
    PSNR in dB; null stands for infinity (equal images). The model's shape is read off the weights.
    """
    if json_file and not os.access(Path(json_file).parent, os.W_OK):
        raise UserError(f"--json {json_file}: there is no such folder, or it cannot be written")
    target = pick(device)
    state = load_weights(weights_file)
    config = infer_config(state, weights_file)
    if scale not in (None, config.scale):
        raise UserError(f"--scale {scale}: {weights_file} holds an x{config.scale} model; give --scale {config.scale} and its evaluation set")
    model = RDN(config)
    load_state(model, state, weights_file)
    model.to(target, memory_format=memory_format(target)).eval()
    pairs = load_pairs(eval_file, config.scale)
    rows = []
    with Bar("images", len(pairs)) as bar:
        for pair in pairs:
            rows.append({"name": pair.name, **score(predict(model, pair.lr), pair, config.scale)})
            bar.advance(pair.name)
    keys = [key for key in rows[0] if key != "name"]
    report = {"images": rows, "mean": {key: float(np.mean([row[key] for row in rows])) for key in keys}}
    _print_table(report, f"{Path(eval_file).name}, x{config.scale}, {Path(weights_file).name}")
    if json_file:
        text = json.dumps(finite(report), indent=1)
        try:
            write_aside(json_file, lambda file: file.write(text.encode()))
        except OSError as error:
            raise UserError(f"--json {json_file}: cannot be written ({error.strerror})") from None
    return report


class _OfFile(Sequence):
    """The pairs of an h5 file, each read when it is asked for."""

    def __init__(self, pairs: Pairs):
        self._pairs, self._names = pairs, pairs.names()

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, i: int) -> Pair:
        return Pair(self._names[i], self._pairs.lr[i], self._pairs.hr[i])


def load_pairs(path: str | Path, scale: int) -> Sequence[Pair]:
    """The pairs of an evaluation h5, or of a folder of HR images (cropped to multiples of scale, LR by PIL's bicubic)."""
    if Path(path).is_dir():
        pairs: Sequence[Pair] = []
        for file in image_files(path):
            try:
                pairs.append(degrade(file.stem, read_image(file), scale))
            except ValueError as error:
                raise UserError(f"{file}: not an image that can be evaluated ({error}); remove it from the folder") from None
        sizes = [pair.lr.shape[:2] for pair in pairs]
    else:
        opened = Pairs(path, scale)
        pairs, sizes = _OfFile(opened), opened.sizes
    smallest = metrics.smallest_side(scale)
    for i, size in enumerate(sizes):
        if scale * min(size) < smallest:
            raise UserError(f"{path}: image {pairs[i].name} is smaller than the {smallest} pixels that PSNR and SSIM at x{scale} need; remove it")
    return pairs


def predict(model: RDN, lr: np.ndarray) -> np.ndarray:
    """lr uint8 [h, w, 3] -> float32 [scale*h, scale*w, 3] in 0..255, neither rounded nor clipped; computed in float32."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        x = to_float(torch.from_numpy(np.array(lr))[None], device)  # a copy: torch wants writable memory
        return model(x)[0].permute(1, 2, 0).mul(255).cpu().numpy()


def bicubic(pair: Pair) -> np.ndarray:
    """PIL's bicubic up-sampling of the LR image: uint8, the size of the HR image."""
    return np.asarray(Image.fromarray(pair.lr).resize(pair.hr.shape[1::-1], Image.Resampling.BICUBIC))


def score(prediction: np.ndarray, pair: Pair, scale: int) -> dict[str, float]:
    """All columns of the table for one image; prediction as from predict()."""
    return {
        prefix + name: measure(image, pair.hr, scale)
        for prefix, image in (("", prediction), ("bicubic_", bicubic(pair)))
        for name, measure in (("psnr_y", metrics.psnr_y), ("psnr_y_compat", metrics.psnr_y_compat), ("ssim_y", metrics.ssim_y))
    }


def _print_table(report: dict, title: str) -> None:
    table = Table(title=escape(title), title_justify="left")
    table.add_column("image")
    for name in ("PSNR-Y", "PSNR-Y ref.", "SSIM-Y", "bicubic PSNR-Y", "PSNR-Y ref.", "SSIM-Y"):
        table.add_column(name, justify="right")
    for row in (*report["images"], {"name": "mean", **report["mean"]}):
        if row["name"] == "mean":
            table.add_section()
        table.add_row(escape(row["name"]), *(f"{value:.4f}" if "ssim" in key else f"{value:.2f}" for key, value in row.items() if key != "name"))
    print_table(table)
    print("PSNR-Y: canonical (rounded to uint8, borders cropped). ref.: as yjn870's code and the Ascend port print it.")
