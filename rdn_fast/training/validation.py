"""Validation between epochs: evaluation's way from a model to a PSNR, shared out over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from rdn_fast.data.pairs import Pair
from rdn_fast.distributed.process_group import Ranks
from rdn_fast.evaluation.evaluate import exact_upscaler
from rdn_fast.evaluation.metrics import psnr_y, psnr_y_compat
from rdn_fast.model import RDN
from rdn_fast.pictures.tiled import NotFinite


def validate(
    model: RDN, impl: str, pairs: Sequence[Pair], ranks: Ranks, say: Callable[[str], None]
) -> tuple[float, float]:
    """Return the mean PSNR-Y of the pairs in dB: canonical, reference-compatible. A collective.

    NaN if an output is not finite: training may still recover from that. say: called with a line when memory ran out.
    """
    upscaler = exact_upscaler(model, say=say)
    values = torch.zeros(len(pairs), 2, dtype=torch.float64)
    for i in range(ranks.rank, len(pairs), ranks.world):
        pair = pairs[i]
        try:
            with model.computing(None, impl):
                prediction = upscaler.exactly(pair.lr)
        except NotFinite:
            values[i] = math.nan
            continue
        for j, measure in enumerate((psnr_y, psnr_y_compat)):
            values[i, j] = measure(prediction, pair.hr, upscaler.scale)
    canonical, compatible = ranks.all_sum(values).mean(dim=0).tolist()
    return canonical, compatible
