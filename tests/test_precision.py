"""What `--opt-level` and `--amp-dtype` stand for."""

import torch

from rdn_fast import devices, precision

CPU = torch.device("cpu")


def test_levels(monkeypatch):
    assert precision.resolve("O0", "fp16", CPU) == precision.Precision("O0", torch.float32, torch.float32)
    assert precision.resolve("O1", "auto", CPU) == precision.Precision("O1", torch.bfloat16, torch.float32)
    assert precision.resolve("O2", "fp16", CPU) == precision.Precision("O2", torch.float16, torch.float16)
    for there, level in ((True, "O1"), (False, "O0")):
        monkeypatch.setattr(devices, "low_precision_pays", lambda _, there=there: there)
        assert precision.resolve("auto", "auto", CPU).level == level


def test_dtype_name():
    assert [precision.dtype_name(dtype) for dtype in (torch.float32, torch.bfloat16)] == ["float32", "bfloat16"]
