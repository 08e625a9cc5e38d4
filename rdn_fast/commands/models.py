"""`rdn-fast models`: the models that come with rdn_fast."""

from __future__ import annotations

import json as json_format

from rich.table import Table

from rdn_fast.files import Kind, write_result
from rdn_fast.terminal import bytes_in_words, cell, print_line, print_table
from rdn_fast.weights.shipped import ShippedModel, shipped_models

_KIND = Kind("a list of rdn-fast models", lambda head: head.startswith(b'{\n "models": '))


def models(json: str | None = None) -> None:
    """Print what is known of each shipped model, from its file and its card. json: a file to write it to, too.

    Raises UserError.
    """
    each = [_describe(model) for model in shipped_models()]
    table = Table()
    for heading in ("name", "scale", "parameters", "file", "Set5 PSNR-Y", "licence"):
        table.add_column(heading)
    for model in each:
        psnr = "not stated" if model["set5_psnr_y"] is None else f"{model['set5_psnr_y']:.2f} dB"
        size = f"{model['parameters'] / 1e6:.2f} M", bytes_in_words(model["bytes"])
        table.add_row(cell(model["name"]), f"x{model['scale']}", *size, psnr, cell(model["licence"]))
    print_table(table)
    for model in each:
        print_line(f"{model['name']}: learnt from {model['training_data']}; card: {model['card']}")
    if json is not None:
        content = json_format.dumps({"models": each}, indent=1) + "\n"
        write_result(json, content.encode(), f"--json {json}", _KIND)


def _describe(model: ShippedModel) -> dict:
    return {
        "name": model.name,
        "scale": model.scale,
        "architecture": model.metadata["architecture"],
        "parameters": model.parameters,
        "bytes": model.file.stat().st_size,
        "set5_psnr_y": model.psnr_y("Set5"),
        "licence": model.metadata["licence"],
        "training_data": model.metadata["training_data"],
        "file": str(model.file),
        "card": str(model.card),
    }
