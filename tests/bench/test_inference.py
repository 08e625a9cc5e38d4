"""The runtimes that inference is held against."""

import importlib

import pytest
import torch

from bench.cases import inference
from bench.measure import Bench
from rdn_fast.config import ModelConfig

CPU = torch.device("cpu")
TINY = ModelConfig(num_features=6, growth_rate=4, num_blocks=2, num_layers=2)


@pytest.mark.parametrize("bf16", [False, True])
def test_each_runtime_computes_in_every_dtype_of_the_processor(monkeypatch, bf16):
    monkeypatch.setattr(importlib, "import_module", lambda name: None)  # all are installed
    monkeypatch.setattr(inference, "has_bf16", lambda device: bf16)
    dtypes = [torch.float32, *([torch.bfloat16] if bf16 else [])]
    found = [(name, dtype) for name, dtype, _ in inference.runtimes(TINY, CPU)]
    assert found == [(name, dtype) for name in ("ONNX Runtime", "OpenVINO") for dtype in dtypes]


@pytest.mark.slow
def test_what_a_runtime_cannot_compute_is_a_row_that_says_why(monkeypatch, out):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    monkeypatch.setattr(inference, "has_bf16", lambda device: True)
    makers = [maker for maker in inference.runtimes(TINY, CPU) if maker[0] == "ONNX Runtime"]
    bench = Bench("test", CPU, "naive")
    bench.compare(inference.compare(inference.NAME, TINY, (1, 3, 16, 16), CPU, False, makers), rounds=3)
    rows = {row.dtype: row for row in bench.results.rows if row.recipe == "ONNX Runtime"}
    assert rows["float32"].seconds > 0
    assert rows["bfloat16"].kind == "not measured"
    assert rows["bfloat16"].note.endswith("its CPU provider has no convolution in bfloat16")
    assert not bench.failures
