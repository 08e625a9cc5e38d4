"""Validation between epochs: evaluation's way from a model to a PSNR, shared out over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from rdn_fast.data.pairs import Pair
from rdn_fast.distributed.in_touch import InTouch
from rdn_fast.distributed.process_group import Ranks
from rdn_fast.evaluation.evaluate import exact_upscaler
from rdn_fast.evaluation.metrics import mean, psnr_y, psnr_y_compat
from rdn_fast.evaluation.picture_folder import read_ahead
from rdn_fast.model import RDN
from rdn_fast.pictures.tiled import NotFinite


class Validation(NamedTuple):
    """PSNR-Y in dB. NaN if an output is not finite: training may still recover from that."""

    canonical: float  # metrics.mean() over the images, as the next
    compatible: float  # reference-compatible
    psnrs: list[float]  # reference-compatible, of each image; inf for equal images
    exact: int  # images whose PSNR is infinite by either convention


def validate(
    model: RDN,
    impl: str,
    pairs: Sequence[Pair],
    ranks: Ranks,
    in_touch: InTouch,
    say: Callable[[str], None],
    look: Callable[[int, Pair, np.ndarray], None] | None = None,
) -> Validation:
    """Measure the model by this impl on the pairs. A collective.

    Raises Stopped at a signal, which is heard between blocks, tiles and images. say: called with a line when memory
    ran out. look: called with each finite output that this rank computes, float [H, W, 3] in 0..255.
    """
    upscaler = exact_upscaler(model, say=say)
    upscaler.progress = lambda _: in_touch.poll()  # between tiles
    values = torch.zeros(len(pairs), 2, dtype=torch.float64)
    mine = range(ranks.rank, len(pairs), ranks.world)
    with _polling_between_blocks(model, in_touch), model.computing(None, impl):
        for i, pair in zip(mine, read_ahead(pairs, mine), strict=True):
            in_touch.poll()
            try:
                prediction = upscaler.exactly(pair.lr)
            except NotFinite:
                values[i] = math.nan
                continue
            for j, measure in enumerate((psnr_y, psnr_y_compat)):
                values[i, j] = measure(prediction, pair.hr, upscaler.scale)
            if look:
                look(i, pair, prediction)
        in_touch.finish()
    values = ranks.all_sum(values)
    canonical, compatible = values.T.tolist()
    exact = int((values == math.inf).any(dim=1).sum())
    return Validation(mean(canonical), mean(compatible), compatible, exact)


@contextmanager
def _polling_between_blocks(model: RDN, in_touch: InTouch) -> Iterator[None]:
    """Poll before each residual dense block within the `with` block: one tile may be a picture of minutes."""
    hooks = [block.register_forward_pre_hook(lambda *_: in_touch.poll()) for block in model.rdbs]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
