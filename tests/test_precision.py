"""What `--opt-level` and `--amp-dtype` stand for."""

import pytest
import torch

from rdn_fast import devices, precision

CPU = torch.device("cpu")


def test_levels():
    assert precision.resolve("O0", "fp16", CPU) == precision.Precision("O0", torch.float32, torch.float32)
    assert precision.resolve("O1", "auto", CPU) == precision.Precision("O1", torch.bfloat16, torch.float32)
    assert precision.resolve("O2", "fp16", CPU) == precision.Precision("O2", torch.float16, torch.float16)


@pytest.mark.parametrize("level", ["O0", "O1", "O2"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_precision_is_read_back_from_its_words(level, dtype):
    chosen = precision.resolve(level, dtype, CPU)
    assert precision.parse(str(chosen)) == chosen


def test_which_cpus_have_instructions(monkeypatch):
    for capability in ("avx512_bf16", "amx_bf16", "bf16"):  # the last one on aarch64
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=capability: {name: True})
        assert devices.has_instructions(CPU, torch.bfloat16)
        assert not devices.has_instructions(CPU, torch.float16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "amx_bf16": False})
    assert not devices.has_instructions(CPU, torch.bfloat16)
    assert devices.has_instructions(torch.device("meta"), torch.float16)


def test_dtype_name():
    assert [precision.dtype_name(dtype) for dtype in (torch.float32, torch.bfloat16)] == ["float32", "bfloat16"]
