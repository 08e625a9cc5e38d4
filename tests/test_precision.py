"""What `--opt-level` and `--amp-dtype` stand for."""

import torch

from rdn_fast import devices, precision

CPU = torch.device("cpu")


def test_levels(monkeypatch):
    assert precision.choose("O0", "fp16", CPU) == precision.Precision("O0", torch.float32, torch.float32)
    assert precision.choose("O1", "auto", CPU) == precision.Precision("O1", torch.bfloat16, torch.float32)
    assert precision.choose("O2", "fp16", CPU) == precision.Precision("O2", torch.float16, torch.float16)
    for there, level in ((True, "O1"), (False, "O0")):
        monkeypatch.setattr(devices, "low_precision_pays", lambda _, there=there: there)
        assert precision.choose("auto", "auto", CPU).level == level
