"""The runtimes that inference is held against."""

import importlib

import pytest
import torch

from bench import models
from bench.cases import inference
from bench.measure import Bench
from rdn_fast.config import ModelConfig
from rdn_fast.rdb import amx

CPU = torch.device("cpu")
TINY = ModelConfig(num_features=6, growth_rate=4, num_blocks=2, num_layers=2)


@pytest.mark.parametrize("bf16", [False, True])
def test_each_runtime_computes_in_every_dtype_of_the_processor(monkeypatch, bf16):
    monkeypatch.setattr(inference, "has_bf16", lambda device: bf16)
    dtypes = [torch.float32, *([torch.bfloat16] if bf16 else [])]
    found = [(name, dtype) for name, dtype, _ in inference.runtimes(TINY, CPU)]
    assert found == [(name, dtype) for name in ("ONNX Runtime", "OpenVINO") for dtype in dtypes]


def test_what_this_machine_lacks_is_a_row_that_says_so_and_no_failure(monkeypatch, out):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.setattr(amx.block, "kernels", amx.TileKernels(amx.SOURCE, *amx.TILES))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": False})
    makers = [*models.makers(TINY, (1, 3, 8, 8), CPU, False, [torch.bfloat16], "naive", every=True)]
    makers = [maker for maker in makers if maker[0] == "impl amx"] + inference.runtimes(TINY, CPU)
    bench = Bench("test", CPU, "naive")
    bench.compare(inference.compare(inference.NAME, TINY, (1, 3, 8, 8), CPU, False, makers), rounds=3)
    notes = {row.recipe: row.note for row in bench.results.rows if row.kind == "not measured"}
    assert notes["impl amx"].startswith("cannot run here: needs a processor with AMX")
    for name in ("ONNX Runtime", "OpenVINO"):
        assert notes[name].startswith("cannot run here: No module named")
    assert not bench.failures


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
