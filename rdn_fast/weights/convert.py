"""Weights of any RDN: read them, build the model, write them anew.

Architecture and scale are read off the tensors' shapes, the project that they come from off their names.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch

from rdn_fast import devices
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.files import Kind, write_result
from rdn_fast.model import RDN, check_state, describe, infer_config, meta_model
from rdn_fast.terminal import print_line
from rdn_fast.weights import formats, shipped
from rdn_fast.weights.load import load_tensors

_FORMAT = "1"  # version of what the keys of our metadata mean
_WHITE = {"0..1": 1, "0..255": 255}  # value range: the largest RGB value that the model takes and gives


@dataclass(frozen=True)
class Weights:
    """An RDN's weights.

    state: float32 tensors under the reference's names, for RGB in 0..1.
    layout: whose names the file had (formats.Found), and in brackets the keys that led to them.
    metadata: of a safetensors file.
    """

    state: dict[str, torch.Tensor]
    config: ModelConfig
    layout: str
    metadata: dict[str, str] = field(default_factory=dict)


def read_weights(path: str | Path) -> Weights:
    """Read the weights of an RDN as we save them, or another project (docs/weights.md lists them).

    path: a file, or a folder with TensorFlow.js's model.json. Its content counts, not its name. Where neither is there,
    the name of a shipped model stands for its file. The tensors may have any floating-point dtype. Where a file holds
    weights and their running average, the average is taken, and `layout` names it. Raises UserError naming the file:
    missing, damaged, asking for code to be run, not exactly an RDN, or with values that are not finite.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"weights: give the name of a file; this is of type {type(path).__name__}")
    return _read(Path(path), 1)


def load_model(path: str | Path | None = None, device: str | torch.device = "auto", *, scale: int | None = None) -> RDN:
    """Return the model of a weights file, or a shipped model, on the device, in eval mode.

    path: as of read_weights(), also a shipped model's name. None: the shipped model of this scale (None: x2).
    scale: checked against the weights' own where a path is given.
    It takes float32 [B, 3, H, W], RGB in 0..1, and gives [B, 3, s*H, s*W] in the same range, not clamped. model.config
    tells its shape and scale. Its memory format is the device's. device: "auto", "cpu", "cuda[:i]", "npu[:i]", or a
    torch.device. Raises UserError as read_weights() does, for another scale, and for a device that this machine does
    not have.
    """
    target = device if isinstance(device, torch.device) else devices.pick(device)
    weights = read_weights(shipped.select(scale=scale).file if path is None else path)
    shipped.check_scale(scale, weights.config.scale, "scale")
    model = meta_model(weights.config)
    model.load_state_dict(weights.state, assign=True)
    return model.to(target, memory_format=devices.memory_format(target)).eval()


def convert(
    source: str, target: str, layout: str = "reference", fp16: bool = False, metadata: list[str] | None = None
) -> None:
    """Write the weights of `source` to `target` in a layout, and print one line about it.

    target: a .safetensors file (with metadata), or a .pth or .pt file (a bare state dict).
    layout: "reference" (its names, RGB in 0..1) or "edsr" (EDSR-PyTorch's names, RGB in 0..255).
    fp16: write float16. metadata: KEY=VALUE words, added to what the source says.
    Raises UserError as read_weights() does, for values that fp16 does not hold, for a target that cannot be written,
    and for one that is the source: a checkpoint would lose everything but its weights.
    """
    path = Path(target)
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise UserError(f"{target}: its name must end in .safetensors or .pth")
    if metadata and path.suffix != ".safetensors":
        raise UserError(f"--metadata {metadata[0]}: {target} cannot hold it; write a .safetensors file")
    if os.path.exists(path) and os.path.exists(source) and path.samefile(source):
        raise UserError(f"{target}: is the file to read, and only its weights would be left; give another name")
    value_range = "0..255" if layout == "edsr" else "0..1"
    weights = _read(Path(source), _WHITE[value_range])
    c = weights.config
    if layout == "edsr" and (c.scale == 8 or c.tail != "shuffle" or c.mean_shift):
        raise UserError(f"--layout edsr: EDSR-PyTorch builds no {describe(c)}; leave it out")
    _check_target(path)
    state = formats.to_edsr(weights.state) if layout == "edsr" else weights.state
    if fp16:
        state = {key: tensor.half() for key, tensor in state.items()}
        if (key := _first_not_finite(state)) is not None:
            raise UserError(f"--fp16: {key} of {source} holds values too large for it; leave it out")
    if path.suffix == ".safetensors":
        content = _in_fixed_order(safetensors.torch.save(state, _metadata(metadata or [], weights, value_range)))
    else:
        file = io.BytesIO()
        torch.save(state, file)
        content = file.getvalue()
    write_result(path, content, target, Kind("weights", lambda _: True))  # _check_target() has looked at all of it
    parameters = sum(tensor.numel() for tensor in state.values()) / 1e6
    read_as = f"{weights.layout} layout, {describe(c)}, {parameters:.2f} M parameters"
    wide = "float32, biases float64" if layout == "edsr" else "float32"
    numbers, megabytes = "float16" if fp16 else wide, f"{len(content) / 1e6:.1f} MB"
    print_line(f"{source}: {read_as} -> {target}: {layout} layout, RGB {value_range}, {numbers}, {megabytes}")


def _check_target(path: Path) -> None:
    """Raise UserError for a file at `path` that is not weights alone: not a picture, nor the checkpoint of a run."""
    if not os.path.isfile(path) or path.stat().st_size == 0:
        return
    try:
        saved, _ = load_tensors(path)
        alone = isinstance(saved, dict) and all(isinstance(value, torch.Tensor) for value in saved.values())
    except UserError:
        alone = False
    if not alone:
        raise UserError(f"{path}: is there already, and is not weights alone; give another name")


def _read(path: Path, white: int) -> Weights:
    """As read_weights(), for RGB in 0..white.

    For 255, biases are float64: one float32 in 250, times 255 and divided by it again in float32, is another number.
    """
    saved, metadata = load_tensors(path)
    if metadata.get("rdn_fast_format", _FORMAT) != _FORMAT:
        raise UserError(f"{path}: is of a later rdn_fast (format {metadata['rdn_fast_format']}); install that one")
    return to_weights(saved, str(path), metadata, white)


def to_weights(saved, name: str, metadata: dict[str, str] | None = None, white: int = 1) -> Weights:
    """Return the weights of an RDN in what a file held: a state dict of any layout, or a checkpoint around one.

    metadata: the file's. white: the largest RGB value that they are for afterwards. Raises UserError naming `name`, as
    read_weights() does.
    """
    metadata = metadata or {}
    state, layout, inside, usual_range = formats.to_reference(saved, name)
    translated = name if layout == "reference" else f"{name}, {layout}'s names turned into the reference's,"
    model_config = infer_config(state, translated)
    check_state(model_config, state, translated)
    value_range = metadata.get("value_range", usual_range)
    if value_range not in _WHITE:
        raise UserError(f"{name}: its value_range is {value_range}; known are {' and '.join(_WHITE)}")
    for key, tensor in state.items():
        if not tensor.is_floating_point():
            remedy = "give the weights as they were before they were quantized"
            raise UserError(f"{name}: {key} holds {tensor.dtype} numbers; {remedy}")
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > sum(stored.values()):
        raise UserError(f"{name}: refused, its tensors share numbers and would take far more memory; get it anew")
    state = {key: _rescale(key, tensor.detach(), _WHITE[value_range], white) for key, tensor in state.items()}
    if (key := _first_not_finite(state)) is not None:
        raise UserError(f"{name}: {key} holds values that are not finite; the model cannot be used")
    return Weights(state, model_config, f"{layout} ({' '.join(inside)})" if inside else layout, metadata)


def _rescale(key: str, tensor: torch.Tensor, white: int, new_white: int) -> torch.Tensor:
    """Return a copy of a parameter for RGB in 0..new_white instead of 0..white.

    Convolutions and ReLU are homogeneous, so only biases, and the colour of a mean shift, grow with the range.
    """
    grows = key.endswith(".bias") or key == "mean"
    if grows:
        tensor = tensor.double() * new_white / white
    dtype = torch.float64 if grows and new_white > 1 else torch.float32
    # copy: tensors of a safetensors file lie in the memory that maps it.
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _first_not_finite(state: dict[str, torch.Tensor]) -> str | None:
    return next((key for key, tensor in state.items() if not tensor.isfinite().all()), None)


def _in_fixed_order(content: bytes) -> bytes:
    """Return a safetensors file with its metadata sorted: safetensors writes them in another order each time."""
    start = 8 + int.from_bytes(content[:8], "little")  # of the numbers; a header lies before them
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[start:]


def _metadata(words: list[str], weights: Weights, value_range: str) -> dict[str, str]:
    """Return a .safetensors file's metadata: the source's, overridden by `words`, and those that the tensors prove."""
    ours = {
        "rdn_fast_format": _FORMAT,
        "architecture": describe(weights.config),
        "scale": str(weights.config.scale),
        "value_range": value_range,
    }
    said = {"training_data": "not stated", "licence": "not stated", **weights.metadata}
    for given in words:
        try:
            word = os.fsencode(given).decode()  # in the C locale Python takes arguments for bytes
        except UnicodeDecodeError:
            raise UserError(f"--metadata {given}: is no UTF-8 text; give it as such") from None
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise UserError(f"--metadata {word}: give KEY=VALUE, for example licence=MIT")
        if value != ours.get(key, value):
            raise UserError(f"--metadata {word}: {key} is {ours[key]}, as the weights show; leave it out")
        said[key] = value
    return said | ours
