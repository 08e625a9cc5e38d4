"""Inference runtimes beside ours: ONNX Runtime and OpenVINO on the model that `rdn-fast export` writes, where they are installed (the extra `bench`)."""

from __future__ import annotations

import importlib
import tempfile
from abc import abstractmethod
from pathlib import Path

import torch

from bench.cases import Checked, Entry
from bench.parity import Results
from bench.results import has_bf16
from rdn_fast.config import ModelConfig
from rdn_fast.model import RDN
from rdn_fast.weights.onnx_export import OPSET, build


class _Runtime(Checked):
    """A model exported for the shape of its input; `load` makes a function numpy -> numpy from the ONNX file."""

    def __init__(self, config: ModelConfig, height: int, width: int, dtype: torch.dtype):
        self.model, self.dtype = RDN(config), dtype
        self._size = (1, 3, height, width)

    @abstractmethod
    def load(self, file: Path):
        """The function."""

    def solve(self, state: dict, x: torch.Tensor, upstream: torch.Tensor) -> Results:
        self.model.load_state_dict(state)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rdn.onnx"
            file.write_bytes(build(self.model, (1, *x.shape[2:]), OPSET).SerializeToString())
            self._run = self.load(file)
        return {"output": torch.from_numpy(self._run(x.numpy()))}

    def fresh(self) -> None:
        self._x = torch.rand(self._size).numpy()

    def run(self) -> None:
        self._run(self._x)


class _OnnxRuntime(_Runtime):
    def load(self, file: Path):
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda x: session.run(None, {name: x})[0]


class _OpenVino(_Runtime):
    def load(self, file: Path):
        openvino = importlib.import_module("openvino")
        precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[self.dtype]
        hints = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        model = openvino.Core().compile_model(str(file), "CPU", hints)
        return lambda x: model(x)[0]


def entries(config: ModelConfig, height: int, width: int, device: torch.device) -> tuple[list[Entry], list[str]]:
    """The runtimes that can be imported, and a line for every other one. Both compute on the CPU, so they are left out elsewhere."""
    if device.type != "cpu":
        return [], []
    low = [torch.bfloat16] if has_bf16(device) else []
    kinds = (
        ("ONNX Runtime", _OnnxRuntime, "onnxruntime", [torch.float32]),
        ("OpenVINO", _OpenVino, "openvino", [torch.float32, *low]),
    )
    found, missing = [], []
    for name, kind, package, dtypes in kinds:
        try:
            for needed in ("onnx", package):
                importlib.import_module(needed)
        except ImportError as error:
            missing.append(f"{name} is not measured: {error}; pip install -e '.[bench]' brings it")
            continue
        found += [
            Entry(name, dtype, lambda kind=kind, dtype=dtype: kind(config, height, width, dtype)) for dtype in dtypes
        ]
    return found, missing
