"""A picture through rdn-b: reference, stock, rdn_fast, and other runtimes on what `rdn-fast export` writes."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bench import tables
from bench.case import CPUS, EVERY, Case, Comparison, Gate
from bench.measure import Bench
from bench.models import RDN_B, compare, makers
from bench.recipe import CannotRun, Maker, Recipe
from bench.results import has_bf16
from rdn_fast.config import ModelConfig
from rdn_fast.model import RDN
from rdn_fast.precision import dtype_name
from rdn_fast.weights.onnx_export import OPSET, build

NAME = "inference"
Session = Callable[[np.ndarray], np.ndarray]  # float32 [1, 3, H, W] -> [1, 3, s*H, s*W]


def comparison(
    model_config: ModelConfig, sides: tuple, device: torch.device, dtypes: list, impl: str, every=False, others=False
) -> Comparison:
    """Return the recipes on one LR picture of height and width `sides`.

    With `every` also every RDB implementation of these dtypes, with `others` other runtimes.
    """
    lr = 1, 3, *sides
    recipes = makers(model_config, lr, device, False, dtypes, impl, every)
    recipes += runtimes(model_config, device) if others else []
    return compare(NAME, model_config, lr, device, False, recipes)


def run(bench: Bench, command: str) -> None:
    given = bench.device, bench.dtypes, bench.impl
    every = command in EVERY
    if command != "upscale":
        bench.compare(comparison(RDN_B, (96, 96), *given, every, others=every), bench.rounds)
    if command in ("upscale", "all"):
        bench.compare(comparison(RDN_B, (128, 128), *given, others=True), bench.rounds)


def runtimes(model_config: ModelConfig, device: torch.device) -> list[Maker]:
    """Return ONNX Runtime and OpenVINO, which compute on the CPU only."""
    if device.type != "cpu":
        return []
    low = [torch.bfloat16] if has_bf16(device) else []
    kinds = (
        ("ONNX Runtime", "onnxruntime", open_onnxruntime),
        ("OpenVINO", "openvino", open_openvino),
    )
    return [
        (name, dtype, partial(runtime, model_config, package, start, dtype))
        for name, package, start in kinds
        for dtype in (torch.float32, *low)
    ]


def runtime(
    model_config: ModelConfig, package: str, start: Callable[[Path, torch.dtype], Session], dtype: torch.dtype
) -> Recipe:
    """Return another runtime. It gets the weights and the shape of the first call: the check's, which comes first."""
    try:
        for needed in ("onnx", package):
            importlib.import_module(needed)
    except ImportError as error:
        raise CannotRun(f"{error}; pip install -e '.[bench]' brings it") from None
    model, sessions = RDN(model_config), []

    def infer(lr: torch.Tensor) -> torch.Tensor:
        if not sessions:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "rdn.onnx"
                file.write_bytes(build(model, (1, *lr.shape[2:]), OPSET).SerializeToString())
                sessions.append(start(file, dtype))
        return torch.from_numpy(sessions[0](lr.numpy()))

    return Recipe(model, torch.device("cpu"), dtype, torch.contiguous_format, infer, None, None)


def open_onnxruntime(file: Path, dtype: torch.dtype) -> Session:
    if dtype != torch.float32:
        raise CannotRun(f"its CPU provider has no convolution in {dtype_name(dtype)}")
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def open_openvino(file: Path, dtype: torch.dtype) -> Session:
    openvino = importlib.import_module("openvino")
    precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]
    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = openvino.Core().compile_model(str(file), "CPU", hints | {"PERFORMANCE_HINT": "LATENCY"})
    return lambda x: model(x)[0]


_DEFAULT = "CPU, inference, default precision / reference (fp32)"
_OTHER = "CPU without bf16, inference / strongest other"
_AMX = "CPU with AMX, inference, bf16 / strongest stock bf16"
_AMX_REST = "CPU with AMX, inference, bf16 / strongest of all others"
_TILES = {"dtype": "bfloat16", "batch": 1, "places": ("cpu+amx",), "own_kernel": True}
_WITH = {"commands": ("upscale", *EVERY), "beside": ("OpenVINO",)}  # ONNX Runtime computes no bf16 on x86
CASE = Case(
    order=20,
    rows=(NAME,),
    commands=("1p", "upscale", "amx", "all"),
    run=run,
    gates=(
        Gate(_DEFAULT, NAME, "vs_reference", 2.1, 2.5, batch=1, places=CPUS),
        Gate(_OTHER, NAME, "vs_other", 1.5, 2.0, batch=1, places=("cpu",)),
        Gate(_AMX, NAME, "vs_stock", 1.6, 2.0, **_TILES),
        Gate(_AMX_REST, NAME, "vs_rest", 1.5, 2.0, **_TILES, **_WITH),
    ),
    quick=lambda device, dtypes: [comparison(RDN_B, (32, 32), device, dtypes, "auto", every=True)],
    **tables.MODEL_SPEEDS,
)
