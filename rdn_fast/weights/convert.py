"""Weights of any RDN, read and written: architecture and scale are read off the tensors, the project they come from off their names."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch

from rdn_fast import devices
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.files import write_result
from rdn_fast.model import RDN, check_state, describe, empty, infer_config
from rdn_fast.weights import formats
from rdn_fast.weights.load import load_tensors

SHIPPED = Path(__file__).parent / "small_x2.safetensors"
_FORMAT = "1"  # of what our metadata mean
_TOPS = {"0..1": 1, "0..255": 255}  # the largest RGB value that a model takes and gives


@dataclass(frozen=True)
class Weights:
    """state: float32 tensors under the reference's names, for RGB in 0..1; layout: where they came from; metadata: what their file says of them."""

    state: dict[str, torch.Tensor]
    config: ModelConfig
    layout: str
    metadata: dict[str, str] = field(default_factory=dict)


def read_weights(path: str | Path) -> Weights:
    """The weights of an RDN, as yjn870, torchSR, Ascend, mmagic, EDSR-PyTorch, Lornatang, BasicSR or we save them, in any precision.

    The file's name says nothing. Where it holds weights and their running average, the average is taken, and `layout` names it.
    Raises UserError naming the file: not there, damaged, asking for code to be run, not (exactly) an RDN, or with values that are not finite.
    """
    return _read(Path(path), 1)


def load_model(path: str | Path | None = None, device: str | torch.device = "auto") -> RDN:
    """The model of a weights file (None: the small x2 one that comes with the package) on the device, in its memory format, in eval mode.

    It takes float32 [B, 3, H, W], RGB in 0..1, and gives [B, 3, scale*H, scale*W] in the same range, not clamped; model.config tells its shape
    and scale. `device`: "auto", "cpu", "cuda[:i]", "npu[:i]", or a torch.device. Raises UserError as read_weights() does, and for a device that is not there.
    """
    target = device if isinstance(device, torch.device) else devices.pick(device)
    weights = read_weights(SHIPPED if path is None else path)
    model = empty(weights.config)
    model.load_state_dict(weights.state, assign=True)
    return model.to(target, memory_format=devices.memory_format(target)).eval()


def convert(
    source: str, target: str, layout: str = "reference", fp16: bool = False, metadata: list[str] | None = None
) -> None:
    """Write the weights of `source` anew, to a .safetensors (with metadata) or a .pth or .pt file (a bare state dict), and say so in a line.

    layout: "reference" (RGB 0..1) or "edsr" (RGB 0..255). metadata: KEY=VALUE words, added to what the source says.
    Raises UserError, also for a target that is the source: a checkpoint would lose all but its weights.
    """
    path = Path(target)
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise UserError(f"{target}: its name must end in .safetensors or .pth")
    if metadata and path.suffix != ".safetensors":
        raise UserError(f"--metadata {metadata[0]}: {target} cannot hold it; write a .safetensors file")
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise UserError(f"{target}: is the file to read, and only its weights would be left; give another name")
    value_range = "0..255" if layout == "edsr" else "0..1"
    weights = _read(Path(source), _TOPS[value_range])
    state = formats.to_edsr(weights.state) if layout == "edsr" else weights.state
    if fp16:
        state = {key: tensor.half() for key, tensor in state.items()}
        if (key := _not_finite(state)) is not None:
            raise UserError(f"--fp16: {key} of {source} holds values too large for it; leave it out")
    if path.suffix == ".safetensors":
        content = safetensors.torch.save(state, _metadata(metadata or [], weights, value_range))
    else:
        file = io.BytesIO()
        torch.save(state, file)
        content = file.getvalue()
    write_result(path, content, target)
    parameters = sum(tensor.numel() for tensor in state.values()) / 1e6
    read_as = f"{weights.layout} layout, {describe(weights.config)}, {parameters:.2f} M parameters"
    print(
        f"{source}: {read_as} -> {target}: {layout} layout, RGB {value_range}, {'float16' if fp16 else 'float32'}, {len(content) / 1e6:.1f} MB"
    )


def _read(path: Path, top: int) -> Weights:
    """As read_weights(), for RGB up to `top`; of 255 biases are float64: one in 250 is not exactly 255 times a float32 in float32."""
    saved, metadata = load_tensors(path)
    if metadata.get("rdn_fast_format", _FORMAT) != _FORMAT:
        raise UserError(f"{path}: is of a later rdn_fast (format {metadata['rdn_fast_format']}); install that one")
    state, layout, inside = formats.to_reference(saved, str(path))
    name = str(path) if layout == "reference" else f"{path}, {layout}'s names turned into the reference's,"
    config = infer_config(state, name)
    check_state(config, state, name)
    value_range = metadata.get("value_range", "0..255" if layout == "edsr" else "0..1")
    if value_range not in _TOPS:
        raise UserError(f"{path}: its value_range is {value_range}; known are {' and '.join(_TOPS)}")
    for key, tensor in state.items():
        if not tensor.is_floating_point():
            raise UserError(
                f"{path}: {key} holds {tensor.dtype} numbers; give the weights as they were before they were quantized"
            )
    state = {key: _scaled(key, tensor.detach(), _TOPS[value_range], top) for key, tensor in state.items()}
    if (key := _not_finite(state)) is not None:
        raise UserError(f"{path}: {key} holds values that are not finite; the model cannot be used")
    return Weights(state, config, f"{layout} ({' '.join(inside)})" if inside else layout, metadata)


def _scaled(key: str, tensor: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """A parameter for RGB up to `new`: convolutions and ReLU are homogeneous, so that only biases grow with the range."""
    if key.endswith(".bias"):
        tensor = tensor.double() * new / old
    dtype = torch.float64 if key.endswith(".bias") and new > 1 else torch.float32
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)  # safetensors' lie in the mapped file


def _not_finite(state: dict[str, torch.Tensor]) -> str | None:
    return next((key for key, tensor in state.items() if not tensor.isfinite().all()), None)


def _metadata(words: list[str], weights: Weights, value_range: str) -> dict[str, str]:
    """What a .safetensors file says: ours, which the tensors prove, what `words` say, and what the source has said."""
    ours = {
        "rdn_fast_format": _FORMAT,
        "architecture": describe(weights.config),
        "scale": str(weights.config.scale),
        "value_range": value_range,
    }
    said = {"training_data": "not stated", "licence": "not stated", **weights.metadata}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise UserError(f"--metadata {word}: give KEY=VALUE, for example licence=MIT")
        if value != ours.get(key, value):
            raise UserError(f"--metadata {word}: {key} is {ours[key]}, as the weights show; leave it out")
        said[key] = value
    return said | ours
