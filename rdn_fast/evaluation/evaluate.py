"""`rdn-fast eval`: PSNR and SSIM of a model over sets of images, per image and as means, bicubic beside them."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import tee
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rdn_fast import __version__, devices
from rdn_fast.data.degradation import Degradation
from rdn_fast.data.pairs import Pair
from rdn_fast.errors import UserError, cannot_write
from rdn_fast.evaluation import metrics, tables
from rdn_fast.evaluation.crops import Crop, draw_figure, worst_and_best
from rdn_fast.evaluation.datasets import EvalDataset, first_scale, open_datasets, unique_name
from rdn_fast.evaluation.outputs import check_no_input_is_lost, files_to_write
from rdn_fast.evaluation.picture_folder import read_ahead
from rdn_fast.files import Kind, write_result
from rdn_fast.model import RDN
from rdn_fast.ordered_map import ordered_map
from rdn_fast.pictures.precisions import BY_DTYPE
from rdn_fast.pictures.tiled import Upscaler
from rdn_fast.precision import dtype_name
from rdn_fast.terminal import Bar, print_line
from rdn_fast.weights.load import sha256
from rdn_fast.weights.onnx_model import OnnxModel, load_any_model
from rdn_fast.weights.shipped import check_scale, file_of, given_or_shipped

_TABLES = {"--json": tables.as_json, "--csv": tables.as_csv, "--markdown": tables.as_markdown}
_MARK = "rdn-fast eval"  # in every PNG that is written
_PNG = Kind("a picture of rdn-fast eval", lambda head: head.startswith(b"\x89PNG") and _MARK.encode() in head)
_KINDS = {
    "--json": Kind("a report of rdn-fast eval", lambda head: head.startswith(b'{\n "weights": ')),
    "--csv": Kind("a table of rdn-fast eval", lambda head: head.startswith(b"set,image,")),
    "--markdown": Kind("a table of rdn-fast eval", lambda head: b" M parameters, " in head.partition(b"\n")[0]),
    "--figure": _PNG,
}


def evaluate(
    weights_file: str | None = None,
    eval_file: list[str] | tuple[str, ...] = (),
    data: str | None = None,
    scale: int | None = None,
    self_ensemble: bool = False,
    strict: bool = False,
    bicubic: str | None = None,
    degradation: str | None = None,
    device: str = "auto",
    json: str | None = None,
    csv: str | None = None,
    markdown: str | None = None,
    save_images: str | None = None,
    figure: str | None = None,
    eval_lr_dir: list[str] | tuple[str, ...] = (),
    model_name: str | None = None,
) -> dict:
    """Evaluate a weights file over sets of images, print the tables, write the files asked for, return the report.

    weights_file: or an ONNX file; None for the shipped model of that name and scale. scale: None for that of the first
    h5 file of eval_file, or 2; with weights checked.
    eval_file: evaluation h5 files and folders of HR images.
    data: a folder; every set inside it. self_ensemble: as of Upscaler.
    strict: raise UserError for a file of a folder that cannot be evaluated, instead of printing and skipping it.
    bicubic, degradation: as of Degradation: how LR images of folders are made, and what stands beside the model. None
    for both: LR pictures that lie with the HR pictures are used, as of load_pairs(); else "pillow" and "bi".
    eval_lr_dir: a folder of LR pictures for each of eval_file; degradation is an error then.
    json, csv, markdown: files for the tables. save_images: a folder for the model's outputs, as <set>/<image>.png.
    figure: a PNG file for the crops where the model is best and worst.

    Returns {"weights", "weights_sha256", "model" (in words), "config", "parameters", "scale", "self_ensemble",
    "precision", "device", "versions", "bicubic", "degradation", "sets"}. Each set is {"name", "lr_made_by" (in words;
    None: unknown), "notes" (lines on what is left out), "images": [{"name", "psnr_y", "psnr_y_compat", "ssim_y",
    "psnr_rgb", and the same with "bicubic_" before}], "mean": {...}}. PSNR is in dB; inf for equal images, which the
    means leave out.

    Raises UserError, also for a file to write that is an input or lies in a set's folder.
    """
    if not eval_file and not data:
        raise UserError(
            "--eval-file SET or --data DIR is missing; give evaluation h5 files or folders of HR images, "
            "or the folder that they lie in"
        )
    degraded = Degradation.of_flags(bicubic, degradation)
    asked = None if bicubic is None and degradation is None else degraded
    if eval_lr_dir and degradation is not None:
        raise UserError(
            f"--degradation {degradation}: LR pictures of --eval-lr-dir are taken as they are; leave it out"
        )
    files = files_to_write({"--json": json, "--csv": csv, "--markdown": markdown, "--figure": figure})
    if figure is not None and Path(figure).suffix.lower() != ".png":
        raise UserError(f"--figure {figure}: its name must end in .png")
    if weights_file is None and model_name is None and scale is None:
        scale = first_scale(eval_file)
    given = given_or_shipped(weights_file, model_name, scale)
    model = load_any_model(given, device)
    weights = str(file_of(given))
    check_scale(scale, model.config.scale, "--scale")
    datasets = open_datasets(eval_file, data, model.config.scale, strict, asked, eval_lr_dir)
    inputs = [path for dataset in datasets for path in dataset.folders]
    check_no_input_is_lost(files, [weights, *inputs], _KINDS)
    folders = _make_image_folders(save_images, datasets) if save_images else None
    report = _describe_run(model, weights, self_ensemble)
    report |= {"bicubic": degraded.bicubic, "degradation": degraded.kind}
    print_line(f"{weights}: {tables.model_in_words(report)}")
    print_line(f"on {report['device']}, torch {torch.__version__}, rdn-fast {__version__}")
    report["sets"], crops = _score_all(model, datasets, degraded, self_ensemble, folders, with_crops=figure is not None)
    tables.print_report(report)
    for flag, file in files.items():
        content = _png(draw_figure(crops)) if flag == "--figure" else _encoded(_TABLES[flag](report))
        write_result(file, content, f"{flag} {file}", _KINDS[flag])
    return report


def exact_upscaler(
    model: RDN | OnnxModel,
    self_ensemble: bool = False,
    say: Callable[[str], None] = print_line,
    dtype: torch.dtype = torch.float32,
) -> Upscaler:
    """Return an Upscaler for measuring: call its exactly(lr), then compare the result with the HR image.

    It computes in float32 without TF32 or HF32. The whole image goes through the model at once, or in tiles padded by
    the receptive radius where memory is short, which gives the same result but for rounding. self_ensemble and say: as
    of Upscaler. dtype: another one for the convolutions, until it overflows: then upscaler.precision is float32.
    """
    return _ExactUpscaler(model, self_ensemble, say, dtype)


class _ExactUpscaler(Upscaler):
    def __init__(self, model: RDN | OnnxModel, self_ensemble: bool, say: Callable[[str], None], dtype: torch.dtype):
        super().__init__(model, tile=0, tile_pad="exact", fp32=True, self_ensemble=self_ensemble, say=say)
        self.precision = self._precision_of_8_bits = BY_DTYPE[dtype]

    def exactly_each(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        with devices.exact_float32(self.model.device):
            yield from super().exactly_each(images)


def score(prediction: np.ndarray, cubic: np.ndarray, hr: np.ndarray, scale: int) -> dict[str, float]:
    """Return all metrics of one image, by column.

    prediction, cubic (the LR image enlarged by bicubic): [H, W, 3], uint8, or float in 0..255, not yet rounded.
    """
    return {
        prefix + name: measure(image, hr, scale)
        for prefix, image in (("", prediction), ("bicubic_", cubic))
        for name, measure in (
            ("psnr_y", metrics.psnr_y),
            ("psnr_y_compat", metrics.psnr_y_compat),
            ("ssim_y", metrics.ssim_y),
            ("psnr_rgb", metrics.psnr_rgb),
        )
    }


class _Prediction(NamedTuple):
    dataset: int  # index
    file_name: str  # unique in the dataset
    pair: Pair
    image: np.ndarray  # float32 [H, W, 3] in 0..255, not yet rounded


def _score_all(
    model: RDN | OnnxModel,
    datasets: list[EvalDataset],
    degradation: Degradation,
    self_ensemble: bool,
    folders: list[Path] | None,
    with_crops: bool,
) -> tuple[list[dict], list[tuple[Crop, Crop]]]:
    """Return the report's sets, and with_crops the worst_and_best() of each image. Save images if there are folders."""
    scale = model.config.scale

    def score_one(prediction: _Prediction) -> tuple[int, dict, tuple[Crop, Crop] | None]:
        dataset, file_name, pair, image = prediction
        rounded, crops = metrics.to_uint8(image), None
        cubic = degradation.resize(pair.lr, *pair.hr.shape[:2])
        if folders:
            file = folders[dataset] / f"{file_name}.png"
            write_result(file, _png(Image.fromarray(rounded)), f"--save-images {file}", _PNG)
        if with_crops:
            crops = worst_and_best(f"{datasets[dataset].name}/{pair.name}", pair.hr, cubic, rounded, scale)
        return dataset, {"name": pair.name, **score(image, cubic, pair.hr, scale)}, crops

    sets = [{"name": d.name, "lr_made_by": d.lr_made_by, "notes": d.notes, "images": []} for d in datasets]
    all_crops = []
    with Bar("images", sum(len(dataset.pairs) for dataset in datasets)) as bar:
        predictions = _predict(exact_upscaler(model.frozen(), self_ensemble, bar.say), datasets)
        # Threads score images while the device computes the next ones: metrics and PNG take longer than a fast device.
        for dataset, scores, crops in ordered_map(score_one, predictions, workers=2, ahead=3):
            sets[dataset]["images"].append(scores)
            all_crops.append(crops)
            bar.advance(f"{sets[dataset]['name']}/{scores['name']} {scores['psnr_y']:.2f} dB")
    for each in sets:
        each["mean"] = _means(each["images"])
        each["notes"] = [*each["notes"], *filter(None, [tables.note_on_infinite(each)])]
    return sets, all_crops


def _means(images: list[dict]) -> dict[str, float]:
    """Return the means of all columns. Those of PSNR are over the same images, so that they can be compared.

    These are the images without an infinite value; where there are none, each column's finite values count.
    """
    finite = [scores for scores in images if math.inf not in scores.values()]
    columns = [key for key in images[0] if key != "name"]
    counted = {key: finite if "psnr" in key and finite else images for key in columns}
    return {key: metrics.mean(scores[key] for scores in counted[key]) for key in columns}


def _predict(upscaler: Upscaler, datasets: list[EvalDataset]) -> Iterator[_Prediction]:
    for i, dataset in enumerate(datasets):
        taken: set[str] = set()
        pairs, again = tee(read_ahead(dataset.pairs, range(len(dataset.pairs))))
        for pair, image in zip(pairs, upscaler.exactly_each(pair.lr for pair in again), strict=True):
            yield _Prediction(i, unique_name(_path_part(pair.name), taken), pair, image)


def _describe_run(model: RDN | OnnxModel, weights: str, self_ensemble: bool) -> dict:
    """Return the report without its sets."""
    return {
        "weights": weights,
        "weights_sha256": sha256(weights),
        "model": model.in_words,
        "config": dataclasses.asdict(model.config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "scale": model.config.scale,
        "self_ensemble": self_ensemble,
        "precision": " and ".join(sorted({dtype_name(p.dtype) for p in model.parameters()})),
        "device": devices.describe(model.device),
        "versions": {
            "rdn_fast": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _make_image_folders(save_images: str, datasets: list[EvalDataset]) -> list[Path]:
    """Make a writable folder for the outputs of each dataset. Raises UserError, also for folders of HR images."""
    taken: set[str] = set()
    folders = [Path(save_images) / unique_name(_path_part(dataset.name), taken) for dataset in datasets]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--save-images {save_images}: {cannot_write(error, 'folder')}") from None
        read = (path for dataset in datasets for path in dataset.folders)
        if not os.access(folder, os.W_OK) or any(map(folder.samefile, read)):
            raise UserError(
                f"--save-images {save_images}: {folder} cannot be written, or holds pictures of a set; "
                "choose another folder"
            )
    return folders


def _path_part(name: str) -> str:
    """Return the name as it can be part of a path on any system, whatever the system's encoding."""
    clean = re.sub(r'[\x00-\x1f<>:"/\\|?*]|^\.+|[. ]+$', "_", name).encode()[:200].decode(errors="ignore")
    return os.fsdecode(clean.encode()) or "_"


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # names of files may be any bytes


def _png(image: Image.Image) -> bytes:
    file, mark = io.BytesIO(), PngInfo()
    mark.add_text("Software", _MARK)
    image.save(file, "PNG", pnginfo=mark)
    return file.getvalue()
