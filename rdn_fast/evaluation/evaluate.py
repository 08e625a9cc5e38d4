"""PSNR and SSIM of a model over sets of images, per image and as means, bicubic beside them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from rdn_fast import __version__, devices
from rdn_fast.data.pairs import Pair
from rdn_fast.errors import UserError
from rdn_fast.evaluation import metrics, tables
from rdn_fast.evaluation.crops import Crop, worst_and_best
from rdn_fast.evaluation.crops import figure as draw_figure
from rdn_fast.evaluation.datasets import EvalDataset, distinct, open_sets
from rdn_fast.files import write_result
from rdn_fast.model import RDN, describe
from rdn_fast.ordered_map import ordered_map
from rdn_fast.pictures.tiled import Upscaler
from rdn_fast.pictures.upscale import check_scale
from rdn_fast.terminal import Bar
from rdn_fast.weights import convert

_TEXTS = {"--json": tables.as_json, "--csv": tables.as_csv, "--markdown": tables.as_markdown}


def evaluate(
    weights_file: str | None = None,
    eval_file: list[str] | tuple[str, ...] = (),
    data: str | None = None,
    scale: int | None = None,
    self_ensemble: bool = False,
    device: str = "auto",
    json: str | None = None,
    csv: str | None = None,
    markdown: str | None = None,
    save_images: str | None = None,
    figure: str | None = None,
) -> dict:
    """Print the tables of a weights file (None: the small x2 model of the package) over sets: h5 files, folders of HR images, all sets inside `data`.

    Returns {"weights", "weights_sha256", "model" (in words), "config", "parameters", "scale", "self_ensemble", "precision", "device", "versions",
    "sets"}, each set being {"name", "images": [{"name", "psnr_y", "psnr_y_compat", "ssim_y", "bicubic_psnr_y", "bicubic_psnr_y_compat",
    "bicubic_ssim_y"}], "mean": {...}}, PSNR in dB. json, csv, markdown: files to write it to, too (in JSON null stands for infinity: equal images);
    save_images: folder for what the model makes of each image, as <set>/<image>.png; figure: PNG file for the crops where it is best and worst.
    Raises UserError, also for a file to write that is read, too, or lies in a set's folder.
    """
    if not eval_file and not data:
        raise UserError(
            "--eval-file SET or --data DIR is missing; give evaluation h5 files or folders of HR images, or the folder that they lie in"
        )
    files = [
        (flag, file)
        for flag, file in zip((*_TEXTS, "--figure"), (json, csv, markdown, figure), strict=True)
        if file is not None
    ]
    for flag, file in files:
        if Path(file).is_dir() or not Path(file).parent.is_dir() or not os.access(Path(file).parent, os.W_OK):
            raise UserError(
                f"{flag} {file}: is a folder, or in one that is not there or cannot be written; give a file that can be"
            )
    if figure is not None and Path(figure).suffix.lower() != ".png":
        raise UserError(f"--figure {figure}: its name must end in .png")
    model = convert.load_model(weights_file, device)
    weights, config = str(convert.SHIPPED if weights_file is None else weights_file), model.config
    check_scale(scale, config.scale, "--scale")
    sets = open_sets(eval_file, data, config.scale)
    _spare(files, weights, sets)
    folders = _folders(save_images, sets) if save_images else None
    report = {**_about(model, weights, self_ensemble), "sets": [{"name": each.name, "images": []} for each in sets]}
    print(f"{weights}: {tables.about(report)}")
    print(f"on {report['device']}, torch {torch.__version__}, rdn-fast {__version__}", flush=True)

    def judge(predicted: _Predicted) -> tuple[int, dict, tuple[Crop, Crop] | None]:
        place, pair, prediction = predicted.place, predicted.pair, metrics.to_uint8(predicted.image)
        if folders:
            file = folders[place] / f"{predicted.file}.png"
            write_result(file, _png(Image.fromarray(prediction)), f"--save-images {file}")
        crops = (
            worst_and_best(f"{sets[place].name}/{pair.name}", pair.hr, bicubic(pair), prediction, config.scale)
            if figure
            else None
        )
        return place, {"name": pair.name, **score(predicted.image, pair, config.scale)}, crops

    drawn = []
    with Bar("images", sum(len(each.pairs) for each in sets)) as bar:
        upscaler = exact_upscaler(model, self_ensemble, bar.say)
        # Threads score images while the device computes the next ones: metrics and PNG take longer than a fast device.
        for place, row, crops in ordered_map(judge, _predict(upscaler, sets), workers=2, ahead=3):
            report["sets"][place]["images"].append(row)
            drawn.append(crops)
            bar.advance(f"{sets[place].name}/{row['name']} {row['psnr_y']:.2f} dB")
    for each in report["sets"]:
        each["mean"] = {
            key: float(np.mean([row[key] for row in each["images"]])) for key in each["images"][0] if key != "name"
        }
    tables.show(report)
    for flag, file in files:
        content = (
            _png(draw_figure(drawn)) if flag == "--figure" else _TEXTS[flag](report).encode(errors="backslashreplace")
        )
        write_result(file, content, f"{flag} {file}")
    return report


def exact_upscaler(model: RDN, self_ensemble: bool = False, say: Callable[[str], None] = print) -> Upscaler:
    """Return an Upscaler for measuring: call its exactly(lr), then compare the result with the HR image.

    It computes in float32 without TF32 or HF32. The whole image goes through the model at once, or in tiles padded by
    the receptive field where memory is short, which gives the same result but for rounding. self_ensemble and say: as
    of Upscaler.
    """
    return _ExactUpscaler(model, tile=0, tile_pad="exact", fp32=True, self_ensemble=self_ensemble, say=say)


class _ExactUpscaler(Upscaler):
    def exactly(self, image: np.ndarray) -> np.ndarray:
        with devices.exact_float32(next(self.model.parameters()).device):
            return super().exactly(image)


def bicubic(pair: Pair) -> np.ndarray:
    """PIL's bicubic up-sampling of the LR image: uint8, the size of the HR image."""
    return np.asarray(Image.fromarray(pair.lr).resize(pair.hr.shape[1::-1], Image.Resampling.BICUBIC))


def score(prediction: np.ndarray, pair: Pair, scale: int) -> dict[str, float]:
    """All columns of the table for one image; prediction: [H, W, 3], uint8 or float in 0..255, neither rounded nor clipped."""
    return {
        prefix + name: measure(image, pair.hr, scale)
        for prefix, image in (("", prediction), ("bicubic_", bicubic(pair)))
        for name, measure in (
            ("psnr_y", metrics.psnr_y),
            ("psnr_y_compat", metrics.psnr_y_compat),
            ("ssim_y", metrics.ssim_y),
        )
    }


def _about(model: RDN, weights: str, self_ensemble: bool) -> dict:
    return {
        "weights": weights,
        "weights_sha256": hashlib.sha256(Path(weights).read_bytes()).hexdigest(),
        "model": describe(model.config),
        "config": dataclasses.asdict(model.config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "scale": model.config.scale,
        "self_ensemble": self_ensemble,
        "precision": "float32",
        "device": devices.describe(next(model.parameters()).device),
        "versions": {
            "rdn_fast": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


class _Predicted(NamedTuple):
    place: int  # of its set
    file: str  # a name for it that no other image of its set has
    pair: Pair
    image: np.ndarray  # [H, W, 3], float in 0..255


def _predict(upscaler: Upscaler, sets: list[EvalDataset]) -> Iterator[_Predicted]:
    for place, each in enumerate(sets):
        taken: set[str] = set()
        for pair in each.pairs:
            yield _Predicted(place, distinct(_safe(pair.name), taken), pair, upscaler.exactly(pair.lr))


def _spare(files: list[tuple[str, str]], weights: str, sets: list[EvalDataset]) -> None:
    """Raises UserError for a file to write that would replace an input or another one, or lie among the images of a set."""
    taken = {Path(weights).resolve(), *(each.path.resolve() for each in sets)}
    for flag, file in files:
        path = Path(file).resolve()
        if taken & {path, *path.parents}:
            raise UserError(
                f"{flag} {file}: is read by this command, or in a set's folder, or given twice; choose another file"
            )
        taken.add(path)


def _folders(save_images: str, sets: list[EvalDataset]) -> list[Path]:
    """A folder for the images of each set, made and fit to be written to. Raises UserError, also for the folders of HR images themselves."""
    taken: set[str] = set()
    folders = [Path(save_images) / distinct(_safe(each.name), taken) for each in sets]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--save-images {save_images}: cannot be written ({error.strerror}); choose another folder"
            ) from None
        if not os.access(folder, os.W_OK) or any(folder.samefile(each.path) for each in sets):
            raise UserError(
                f"--save-images {save_images}: {folder} cannot be written, or holds HR images; choose another folder"
            )
    return folders


def _safe(name: str) -> str:
    """As part of a path, on any system."""
    return re.sub(r'[\x00-\x1f<>:"/\\|?*]|^\.+|[. ]+$', "_", name).encode()[:200].decode(errors="ignore") or "_"


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
