"""The precisions that pictures are computed in."""

from __future__ import annotations

import torch

from rdn_fast import auto_level, devices
from rdn_fast.model import RDN
from rdn_fast.precision import Precision
from rdn_fast.rdb.case import Case
from rdn_fast.weights.onnx_model import OnnxModel

FLOAT32 = Precision("O0", torch.float32, torch.float32)
FP16 = Precision("O1", torch.float16, torch.float32)
BF16 = Precision("O1", torch.bfloat16, torch.float32, outer=torch.float32)  # 79 dB from float32 (profiling/LOG.md)
BY_DTYPE = {precision.compute: precision for precision in (FLOAT32, FP16, BF16)}


def fastest(model: RDN | OnnxModel, edge: int) -> Precision:
    """Return the precision for pictures of 8 bits: fp16 on accelerators, which are faster in it by their nature.

    On CPUs bf16 or float32, by timing the RDN's parts (auto_level.py) on an LR picture with such an edge; an
    OnnxModel has its own precision.
    """
    if devices.low_precision(model.device) == torch.float16:
        return FP16
    if isinstance(model, OnnxModel):
        return FLOAT32
    case = Case.of(model.config, (1, 3, edge, edge), model.device, torch.float32, training=False)
    return BF16 if auto_level.auto_level(case, BF16, model.rdb) == "O1" else FLOAT32
