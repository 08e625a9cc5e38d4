"""The operators of a training step, in order: torch's by bytes and FLOP, npu_conv's kernels by name. No device needed.

The step runs on torch's meta device, which computes shapes only, and a dispatch mode sees every operator.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from rdn_fast.config import ModelConfig
from rdn_fast.devices.npu_kernels import toolchain
from rdn_fast.model import RDN
from rdn_fast.precision import Precision
from rdn_fast.rdb import IMPLS, npu_conv
from rdn_fast.training.losses import weighted_loss

NAMES = ("npu_conv", "sliced", "summed", "naive")
PATCH = 32  # LR pixels
ADAM = 32  # bytes for a parameter: gradient, parameter, two moments; read and written; the gradient's norm
HERE = str(Path(npu_conv.__file__).parents[1])
FREE = ("empty", "detach", "new_empty", "empty_like", "new_empty_strided", "empty_strided", "_unsafe_view")


@dataclass(frozen=True)
class Operator:
    """An operator. part: "forward", "backward" or "optimizer". where: file and function of rdn_fast that called it."""

    name: str
    part: str
    where: str
    read: int  # bytes
    written: int
    flop: int = 0
    text: str | None = None  # of a kernel of npu_conv
    items: int = 0  # of that kernel's launch
    inner: int = 0  # sources, or steps of a split

    @property
    def is_convolution(self) -> bool:
        return self.name.startswith("convolution")


@dataclass
class Step:
    """A training step's operators, and when which gradients are there: (operators so far, bytes of float32)."""

    batch: int
    operators: list[Operator] = field(default_factory=list)
    ready: list[tuple[int, int]] = field(default_factory=list)


class _Recorder(TorchDispatchMode):
    """Appends each operator to a step."""

    def __init__(self, step: Step):
        super().__init__()
        self.step, self.part = step, "forward"

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        keywords = keywords or {}
        out = operator(*arguments, **keywords)
        name = operator.overloadpacket.__name__
        if not _is_view(operator) and name not in FREE:
            given, made = _tensors((arguments, keywords)), _tensors(out)
            count = flop_registry.get(operator.overloadpacket)
            flop = count(*arguments, **keywords, out_val=out) if count else 0
            if name == "convolution":  # the matrix unit takes channels by 16
                flop = flop // arguments[1].shape[1] * -(-arguments[1].shape[1] // 16) * 16
            read, written = (sum(map(_bytes, tensors)) for tensors in (given, made))
            if name in ("fill_", "zero_", "copy_"):  # what is written is not read
                read -= written
            self.step.operators.append(Operator(name, self.part, _caller(), read, written, flop))
        return out

    def launch(self, text: str, arguments, items: int) -> None:
        """Stand for npu_conv.launch."""
        name = text.split("@npu_conv_", 1)[1].split("(", 1)[0]
        numbers = [number for number in arguments if isinstance(number, int)]
        # Of weight_gradient: items, splits, pairs, steps, ...; of the others: sources, items, tiles, ...
        inner = -(-numbers[3] // numbers[1]) if name == "weight_gradient" else numbers[0]
        self.step.operators.append(Operator(name, self.part, "npu_conv.launch", 0, 0, 0, text, items, inner))


def _tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _bytes(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor's elements, of an expanded one those that it repeats once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return math.prod(sizes) * tensor.itemsize


def _is_view(operator) -> bool:
    infos = [result.alias_info for result in operator._schema.returns]
    return any(info is not None and not info.is_write for info in infos)


def _caller() -> str:
    """Return the innermost function of rdn_fast on the stack; "autograd" in a backward pass of torch's own."""
    frame = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(HERE) and not code.co_name.startswith("<"):
            return f"{Path(code.co_filename).stem}.{code.co_name}"
        frame = frame.f_back
    return "autograd"


def trace(impl: str, model_config: ModelConfig, batch: int, cores: int = 24) -> Step:
    """Return the operators of a training step at O1 in float16 on `batch` patches, its blocks computed by `impl`.

    cores: with a matrix unit, of the card that npu_conv launches for.
    """
    with torch.device("meta"):
        model = RDN(model_config, impl)
        lr, hr = (torch.empty(batch, 3, side, side) for side in (PATCH, PATCH * model_config.scale))
    Precision("O1", torch.float16, torch.float32).apply(model)
    step = Step(batch)
    recorder, row = _Recorder(step), replace(IMPLS[impl], devices=("meta",))

    def ready(parameter: torch.Tensor) -> None:
        step.ready.append((len(step.operators), 4 * parameter.numel()))

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(ready)
    with (
        mock.patch.multiple("rdn_fast.model", resolve_impl=lambda *_: impl, select=lambda *_: row),
        mock.patch.object(npu_conv, "launch", recorder.launch),
        mock.patch.dict(vars(toolchain), cores=cores),
        recorder,
    ):
        loss = weighted_loss(model(lr), hr, 1 / hr.numel())
        recorder.part = "backward"
        loss.backward()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    step.operators.append(Operator("adam", "optimizer", "optimizer", ADAM * parameters, 0))
    return step
