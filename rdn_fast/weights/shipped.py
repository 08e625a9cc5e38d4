"""The models that come with rdn_fast: in this folder a file NAME.safetensors and a card NAME.md for each.

Which there are is seen in the folder, what they are in each file's header and card. Nothing else lists them.
Needs no torch.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from rdn_fast.errors import UserError

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class ShippedModel:
    """One model. metadata: of its file, with the keys that `rdn-fast convert` writes."""

    name: str
    scale: int
    parameters: int
    file: Path
    metadata: dict[str, str]

    @property
    def card(self) -> Path:
        return self.file.with_suffix(".md")

    def psnr_y(self, dataset: str) -> float | None:
        """Return the canonical PSNR-Y in dB that the card's table of `eval --markdown` states of a set, if it does."""
        if not self.card.is_file():
            return None
        lines = self.card.read_text(encoding="utf-8").splitlines()
        rows = [[cell.strip(" *") for cell in line.split("|")] for line in lines if line.startswith("|")]
        for heading in (row for row in rows if "RDN PSNR-Y" in row):
            for row in (row for row in rows if row[1] == dataset):
                return float(row[heading.index("RDN PSNR-Y")])
        return None


def shipped_models() -> list[ShippedModel]:
    """Return all models by scale, those of one scale by size. Raises UserError for a file that is damaged."""
    files = (file for file in FOLDER.glob("*.safetensors") if not file.name.startswith("."))  # macOS adds ._NAME
    return sorted(map(_read, files), key=lambda model: (model.scale, model.parameters))


def for_each_scale(
    model_name: str | None = None, scale: int | None = None, dashes: str = "", more: str = ""
) -> dict[int, ShippedModel]:
    """Return {scale: model}: the model of this name, or of this scale; for neither the smallest of every scale.

    dashes: before the parameters' names in an error. more: added to its remedy. Raises UserError, naming the models
    that there are, for a name or a scale that none has, and for a name of another scale.
    """
    models = shipped_models()
    there_are = ", ".join(f"{model.name} (x{model.scale})" for model in models)
    if model_name is not None:
        models = [model for model in models if model.name == model_name]
        if not models:
            raise UserError(
                f"{dashes}model-name {model_name}: no such model comes with rdn_fast; give one of {there_are}"
            )
        if scale not in (None, models[0].scale):
            what = f"{dashes}model-name {model_name} and {dashes}scale {scale}"
            raise UserError(f"{what}: this model is for x{models[0].scale}; give one of the two")
    found = {model.scale: model for model in reversed(models) if scale in (None, model.scale)}
    if not found:
        what = f"{dashes}scale {scale}: no model for it comes with rdn_fast, only {there_are}"
        raise UserError(f"{what}; give one of their scales, or weights for x{scale}{more}")
    return dict(sorted(found.items()))


def select(model_name: str | None = None, scale: int | None = None, dashes: str = "") -> ShippedModel:
    """Return the first model of for_each_scale(): for neither name nor scale that of the smallest scale."""
    return next(iter(for_each_scale(model_name, scale, dashes).values()))


def given_or_shipped(weights_file: str | Path | None, model_name: str | None, scale: int | None) -> str | Path:
    """Return --weights-file, or without it the file of select(--model-name, --scale). Raises UserError."""
    check_one_given(weights_file, model_name)
    return select(model_name, scale, "--").file if weights_file is None else weights_file


def file_of(path: str | Path) -> Path:
    """Return the path, or where nothing is there and it is the name of a shipped model, that model's file."""
    path = Path(path)
    is_name = not os.path.lexists(path) and any(file.stem == str(path) for file in FOLDER.glob("*.safetensors"))
    return FOLDER / f"{path}.safetensors" if is_name else path


def check_one_given(weights_file: str | Path | None, model_name: str | None) -> None:
    """Raise UserError where --weights-file and --model-name are both given."""
    if weights_file is not None and model_name is not None:
        flags = f"--weights-file {weights_file} and --model-name {model_name}"
        raise UserError(f"{flags} each say which weights are taken; give one of them")


def check_scale(wanted: int | None, scale: int, what: str, more: str = "") -> None:
    """Raise UserError when a scale is wanted (not None) that is not the weights'.

    what: the flag or parameter. more: added to the remedy.
    """
    if wanted not in (None, scale):
        remedy = f"give {what} {scale} or none, or other weights{more}"
        raise UserError(f"{what} {wanted}: these weights are for x{scale}; {remedy}")


def _read(file: Path) -> ShippedModel:
    try:
        with file.open("rb") as content:
            header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
        metadata = header.pop("__metadata__")
        parameters = sum(math.prod(tensor["shape"]) for tensor in header.values())
        return ShippedModel(file.stem, int(metadata["scale"]), parameters, file, metadata)
    except Exception:  # a damaged file can raise nearly anything
        raise UserError(f"{file}: damaged; install rdn_fast anew") from None
