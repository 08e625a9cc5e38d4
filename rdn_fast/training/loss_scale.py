"""`--loss-scale-value auto`: a static loss scale, chosen once from the gradients of a few real batches.

fp16 holds magnitudes from 2^-24, from 2^-14 on with all their bits, to 65504. Most gradients of a mean over a batch are smaller than that,
so the loss is multiplied by a scale, and they with it: too small a scale and gradients become zero, too large a one and they overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from rdn_fast import devices
from rdn_fast.data.prefetch import Batch, PrefetchLoader
from rdn_fast.data.sampler import PatchSampler
from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from rdn_fast.precision import Precision

BATCHES = 4  # that are looked at
MARGIN = 16  # a power of two
FP16_MAX = torch.finfo(torch.float16).max
FP16_MIN_EXPONENT, FP16_NORMAL_EXPONENT = (
    -24,
    -14,
)  # exponents of fp16's smallest magnitude, and of the smallest that has all bits
EXPONENT_BIAS = 127  # of float32's exponents
_PATCHES = 8  # computed at a time: the oracle's block needs several times the memory of those that train
_TRIES = 40


@dataclass(frozen=True)
class GradientHistogram:
    """The gradients that would be fp16 in a step, as they are in float32 at scale 1.

    counts: {"activations" and "weights": [256 numbers]}: how many gradients' magnitudes lie in 2^e up to 2^(e+1), at e + 127; the first: how
    many are zero. `largest`: the largest magnitude; `batches`: how many were looked at.
    """

    counts: dict[str, list[int]]
    largest: float
    batches: int

    @property
    def overflow_limit(self) -> float:
        """The largest power of two at which none of them overflows."""
        return 2.0 ** (math.frexp(FP16_MAX / self.largest)[1] - 1)

    @property
    def scale(self) -> float:
        """The largest power of two that leaves MARGIN times room below fp16's largest number.

        The scale stays while the gradients change. At O2 they are largest at the start, where the last bias sees errors of one sign: 1/3. At O1
        the largest grew 3.5 times in training, and the first scale that overflowed was 8 times this one; at O2, 32 times. The room costs nothing
        at the other end: underflow hurt at scales 2^28 and 2^23 times smaller (profiling/loss_scale.csv).
        """
        return self.overflow_limit / MARGIN

    def share_below(self, exponent: int, scale: float = 1.0) -> float:
        """Which share of those that are not zero is smaller than 2^exponent once multiplied by `scale`, a power of two."""
        total = [sum(column) for column in zip(*self.counts.values(), strict=True)]
        end = exponent - round(math.log2(scale)) + EXPONENT_BIAS
        return sum(total[1 : max(1, end)]) / sum(total[1:])

    def describe(self) -> list[str]:
        """The choice and its reasons for a run's log."""
        lost, few = (f"{self.share_below(edge, self.scale):.2%}" for edge in (FP16_MIN_EXPONENT, FP16_NORMAL_EXPONENT))
        return [
            f"loss scale auto: {self.scale:.10g}, the largest power of two that leaves {MARGIN} times room below fp16's {FP16_MAX:.0f} "
            f"(largest gradient of {self.batches} batches: {self.largest:.2g})",
            f"of the gradients that are not zero, {lost} underflow in fp16 at it ({self.share_below(FP16_MIN_EXPONENT):.2%} at scale 1) "
            f"and {few} lose bits ({self.share_below(FP16_NORMAL_EXPONENT):.2%})",
        ]


class ResolvedScale(NamedTuple):
    """A loss scale, the words for it, and what it was chosen from (None: nothing had to be measured)."""

    scale: float
    lines: list[str]
    histogram: GradientHistogram | None


def resolve(model: RDN, precision: Precision, batches: Callable[[], Sequence[Batch]]) -> ResolvedScale:
    """The scale for training `model` from here on at `precision`, by the row that model.rdb names; `batches` is called only where it matters.

    A function of the weights and batches; the model is left as it was. Raises UserError where no scale helps.
    """
    if precision.compute != torch.float16:
        dtype = str(precision.compute).removeprefix("torch.")
        return ResolvedScale(
            1.0,
            [f"loss scale auto: 1, because gradients do not underflow in {dtype}, which reaches down to 2^-126"],
            None,
        )
    given = batches()
    evidence = calibrate(model, precision, given)
    scale = evidence.scale
    for _ in range(_TRIES):
        if _finite(model, precision, given[0], scale):
            break
        scale /= 2
    else:
        raise UserError(
            "--loss-scale-value auto: gradients in fp16 overflow at any scale; give --amp-dtype bf16 or --opt-level O0"
        )
    halved = (
        [f"a step in fp16 overflowed at that scale: halved to {scale:.10g}, where its gradients are finite"]
        if scale != evidence.scale
        else []
    )
    return ResolvedScale(scale, evidence.describe() + halved, evidence)


def sample_batches(sampler: PatchSampler, device: torch.device, start: int = 0) -> list[Batch]:
    """Copies of this rank's batches of the steps from `start` on."""
    with PrefetchLoader(sampler, device, "auto", 0, start, start + BATCHES) as feed:
        return [batch._replace(lr=batch.lr.clone(), hr=batch.hr.clone()) for batch in feed]


def calibrate(model: RDN, precision: Precision, batches: Sequence[Batch]) -> GradientHistogram:
    """Measure, in float32 with the oracle's block, the gradients that are fp16 at `precision`. Raises UserError when they are not finite, or zero.

    Those of activations are those with respect to every convolution's input, which in a block holds all maps so far, and to the output
    where that is fp16; those of weights, biases among them, do not hold the last convolution's at O1.
    """
    output_is_low = precision.output == torch.float16
    parameters = [p for name, p in model.named_parameters() if output_is_low or not name.startswith("output.")]
    device = parameters[0].device
    counts = {kind: torch.zeros(256, dtype=torch.int64, device=device) for kind in ("activations", "weights")}
    peaks = []

    def count(kind: str, gradient: torch.Tensor) -> None:
        magnitude = gradient.detach().abs().flatten()
        exponents = magnitude.view(torch.int32) >> 23  # float32's own, plus EXPONENT_BIAS; 0 is less than 2^-126
        counts[kind] += torch.bincount(exponents, minlength=256)
        peaks.append(magnitude.max())

    def activations(gradient: torch.Tensor) -> None:
        count("activations", gradient)

    with _computing(model, None, None, "naive"):
        for batch in batches:
            totals = [torch.zeros_like(p) for p in parameters]
            for lr, hr in zip(batch.lr.split(_PATCHES), batch.hr.split(_PATCHES), strict=True):
                with _Convolutions(activations):
                    y = model(lr)
                if output_is_low:
                    y.register_hook(activations)
                for total, gradient in zip(totals, torch.autograd.grad(_loss(y, hr, batch), parameters), strict=True):
                    total.add_(gradient)
            for total in totals:
                count("weights", total)
    largest = torch.stack(peaks).max().item()
    if not torch.finfo(torch.float32).tiny <= largest < math.inf:
        raise UserError(
            f"--loss-scale-value auto: the largest gradient in float32 is {largest}; give other weights, or a number"
        )
    return GradientHistogram({kind: counted.tolist() for kind, counted in counts.items()}, largest, len(batches))


class _Convolutions(TorchFunctionMode):
    """Has the gradient with respect to each convolution's input given to `hook`."""

    def __init__(self, hook: Callable[[torch.Tensor], None]):
        super().__init__()
        self._hook = hook

    def __torch_function__(self, function, types, arguments=(), options=None):
        if function is F.conv2d and arguments[0].requires_grad:
            arguments[0].register_hook(self._hook)
        return function(*arguments, **(options or {}))


@contextmanager
def _computing(model: RDN, compute: torch.dtype | None, output: torch.dtype | None, rdb: str):
    before = model.compute_dtype, model.output_dtype, model.rdb
    model.compute_dtype, model.output_dtype, model.rdb = compute, output, rdb
    try:
        yield
    finally:
        model.compute_dtype, model.output_dtype, model.rdb = before


def _loss(y: torch.Tensor, hr: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The part of a step's loss that these patches of the batch make, as in step.Step."""
    return F.l1_loss(y.float(), hr, reduction="sum") / batch.hr.numel()


def _finite(model: RDN, precision: Precision, batch: Batch, scale: float) -> bool:
    with _computing(model, precision.compute, precision.output, model.rdb):
        devices.clear_overflow(batch.lr.device)
        loss = _loss(model(batch.lr), batch.hr, batch) * scale
        finite = all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, list(model.parameters())))
        return finite and not devices.overflowed(batch.lr.device)
