"""Validation between epochs: evaluation's way from a model to a PSNR, shared out over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import tee
from typing import NamedTuple

import numpy as np
import torch

from rdn_fast import devices
from rdn_fast.data.pairs import Pair
from rdn_fast.distributed.in_touch import InTouch
from rdn_fast.distributed.process_group import Ranks
from rdn_fast.evaluation.evaluate import exact_upscaler
from rdn_fast.evaluation.metrics import mean, psnr_y, psnr_y_compat
from rdn_fast.evaluation.picture_folder import read_ahead
from rdn_fast.model import RDN
from rdn_fast.ordered_map import ordered_map
from rdn_fast.pictures.tiled import NotFinite, Upscaler
from rdn_fast.precision import dtype_name


class Validation(NamedTuple):
    """PSNR-Y in dB. NaN if an output is not finite, or overflowed: training may still recover from that."""

    canonical: float  # metrics.mean() over the images, as the next
    compatible: float  # reference-compatible
    psnrs: list[float]  # reference-compatible, of each image; inf for equal images
    exact: int  # images whose PSNR is infinite by either convention
    dtype: str  # in which the convolutions were computed


def validate(
    model: RDN,
    impl: str,
    pairs: Sequence[Pair],
    ranks: Ranks,
    in_touch: InTouch,
    say: Callable[[str], None],
    dtype: torch.dtype = torch.float32,
    look: Callable[[int, Pair, np.ndarray], None] | None = None,
) -> Validation:
    """Measure the model by this impl on the pairs. A collective.

    Raises Stopped at a signal, which is heard between blocks, tiles and images. say: called with a line when memory
    ran out, or low precision overflowed. dtype: as of exact_upscaler(). look: called with each finite output that this
    rank computes, float [H, W, 3] in 0..255, on an accelerator in a thread.
    """
    upscaler = exact_upscaler(model, say=say, dtype=dtype)
    upscaler.progress = lambda _: in_touch.poll()  # between tiles
    values = torch.zeros(len(pairs), 2, dtype=torch.float64)
    mine = range(ranks.rank, len(pairs), ranks.world)
    with _polling_between_blocks(model, in_touch), model.computing(None, impl):
        try:
            # A thread measures an image while an accelerator computes the next one.
            workers, predicted = int(not devices.is_host(model.device)), _predicted(upscaler, mine, pairs, in_touch)
            measured = ordered_map(partial(_measure, look), predicted, workers, ahead=2)
            for i, psnrs in zip(mine, measured, strict=True):
                values[i] = psnrs
            finite = upscaler.precision.compute == dtype
        except NotFinite:
            finite = False
        if not finite:
            values[mine.start :: ranks.world] = math.nan
        in_touch.finish()
    values = ranks.all_sum(values)
    canonical, compatible = values.T.tolist()
    exact = int((values == math.inf).any(dim=1).sum())
    return Validation(mean(canonical), mean(compatible), compatible, exact, dtype_name(dtype))


class _Predicted(NamedTuple):
    index: int  # of the pair
    pair: Pair
    image: np.ndarray  # float32 [H, W, 3] in 0..255, not yet rounded


def _predicted(upscaler: Upscaler, indices: range, pairs: Sequence[Pair], in_touch: InTouch) -> Iterator[_Predicted]:
    ours, again = tee(read_ahead(pairs, indices))

    def images() -> Iterator[np.ndarray]:
        for pair in again:
            in_touch.poll()
            yield pair.lr

    for predicted in zip(indices, ours, upscaler.exactly_each(images()), strict=True):
        yield _Predicted(*predicted)


def _measure(look: Callable[[int, Pair, np.ndarray], None] | None, predicted: _Predicted) -> torch.Tensor:
    """Return an image's PSNR-Y, canonical and reference-compatible: float64 [2]. look: as of validate()."""
    if look:
        look(*predicted)
    _, pair, image = predicted
    scale = image.shape[0] // pair.lr.shape[0]
    return torch.tensor([measure(image, pair.hr, scale) for measure in (psnr_y, psnr_y_compat)], dtype=torch.float64)


@contextmanager
def _polling_between_blocks(model: RDN, in_touch: InTouch) -> Iterator[None]:
    """Poll before each residual dense block within the `with` block: one tile may be a picture of minutes."""
    hooks = [block.register_forward_pre_hook(lambda *_: in_touch.poll()) for block in model.rdbs]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
