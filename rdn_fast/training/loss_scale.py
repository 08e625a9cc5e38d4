"""`--loss-scale-value auto`: a static loss scale, resolved once from the gradients of a few real batches.

fp16 holds magnitudes up to 65504, down to 2^-14 with all bits and down to 2^-24 with fewer. Most gradients of a mean
over a batch are smaller. The loss scale multiplies the loss and with it all gradients: too small and gradients become
zero, too large and they overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from rdn_fast.precision import Precision, dtype_name
from rdn_fast.training.losses import weighted_loss

BATCHES = 4  # whose gradients are measured
MARGIN = 16  # a power of two: room between the largest gradient and overflow
FP16_MAX = torch.finfo(torch.float16).max
FP16_MIN_EXPONENT = -24  # of the smallest magnitude
FP16_NORMAL_EXPONENT = -14  # of the smallest magnitude with all bits
EXPONENT_BIAS = 127  # of float32
_PATCHES = 8  # per forward pass: the naive impl needs several times the memory of those that train
_MAX_HALVINGS = 40


@dataclass(frozen=True)
class GradientHistogram:
    """Histogram of the gradients that would be fp16 in a step, measured in float32 at loss scale 1.

    counts: for "activations" and "weights" 256 numbers each. Element e + EXPONENT_BIAS counts the magnitudes from 2^e
    up to 2^(e+1); element 0 counts zeros.
    """

    counts: dict[str, list[int]]
    largest: float  # magnitude
    batches: int

    @property
    def overflow_limit(self) -> float:
        """The largest power of two at which no gradient overflows as a loss scale."""
        return 2.0 ** (math.frexp(FP16_MAX / self.largest)[1] - 1)

    @property
    def scale(self) -> float:
        """The loss scale: the largest power of two that leaves MARGIN times room below fp16's maximum.

        The scale is static while the gradients change. At O2 they are largest at the start, where all errors that reach
        the last bias have one sign: 1/3. At O1 the largest grew 3.5 times in training, and the first scale that
        overflowed was 8 times this one; at O2, 32 times. The room costs nothing at the other end: underflow hurt at
        scales 2^28 and 2^23 times smaller (profiling/loss_scale.csv).
        """
        return self.overflow_limit / MARGIN

    def share_below(self, exponent: int, scale: float = 1.0) -> float:
        """Return the share of the gradients other than zero below 2^exponent at loss scale `scale`, a power of two."""
        total = [sum(column) for column in zip(*self.counts.values(), strict=True)]
        end = exponent - round(math.log2(scale)) + EXPONENT_BIAS
        return sum(total[1 : max(1, end)]) / sum(total[1:])

    def describe(self) -> list[str]:
        """Return the scale and its reasons as lines for a run's log."""
        underflow = self.share_below(FP16_MIN_EXPONENT, self.scale)
        subnormal = self.share_below(FP16_NORMAL_EXPONENT, self.scale)
        at_1 = self.share_below(FP16_MIN_EXPONENT), self.share_below(FP16_NORMAL_EXPONENT)
        return [
            f"loss scale auto: {self.scale:.10g}, the largest power of two that leaves {MARGIN} times room "
            f"below fp16's {FP16_MAX:.0f} (largest gradient of {self.batches} batches: {self.largest:.2g})",
            f"of the gradients that are not zero, {underflow:.2%} underflow in fp16 at it ({at_1[0]:.2%} at scale 1) "
            f"and {subnormal:.2%} lose bits ({at_1[1]:.2%})",
        ]


class ResolvedScale(NamedTuple):
    """A loss scale, lines that explain it, and the histogram behind it (None: nothing had to be measured)."""

    scale: float
    lines: list[str]
    histogram: GradientHistogram | None


def resolve(
    model: RDN,
    precision: Precision,
    batches: Callable[[], Sequence[Batch]],
    loss: str = "l1",
    at_once: int | None = None,
) -> ResolvedScale:
    """Return the loss scale for training `model` at `precision` from its current weights on, with the impl model.rdb.

    batches: called only where compute is fp16. loss: of losses.py. at_once: so many patches are computed at a time;
    None: all of a batch. The result depends on weights, batches and loss alone. The model is left as it was. Raises
    UserError where no scale helps.
    """
    if precision.compute != torch.float16:
        dtype = dtype_name(precision.compute)
        reason = f"loss scale auto: 1, because gradients do not underflow in {dtype}, which reaches down to 2^-126"
        return ResolvedScale(1.0, [reason], None)
    measured = batches()
    histogram = calibrate(model, precision, measured, loss)
    scale = histogram.scale
    for _ in range(_MAX_HALVINGS):
        if _is_finite(model, precision, measured[0], scale, loss, at_once):
            break
        scale /= 2
    else:
        remedy = "give --amp-dtype bf16 or --opt-level O0"
        raise UserError(f"--loss-scale-value auto: gradients in fp16 overflow at any scale; {remedy}")
    lines = histogram.describe()
    if scale != histogram.scale:
        lines.append(f"a step in fp16 overflowed at that scale: halved to {scale:.10g}, where its gradients are finite")
    return ResolvedScale(scale, lines, histogram)


def sample_batches(sampler: PatchSampler, device: torch.device, start: int = 0) -> list[Batch]:
    """Return copies of this rank's BATCHES batches from step `start` on."""
    with PrefetchLoader(sampler, device, "auto", 0, start, start + BATCHES) as loader:
        return [batch._replace(lr=batch.lr.clone(), hr=batch.hr.clone()) for batch in loader]


def calibrate(model: RDN, precision: Precision, batches: Sequence[Batch], loss: str = "l1") -> GradientHistogram:
    """Measure in float32, with the naive impl, the gradients that are fp16 at `precision`.

    "activations": gradients with respect to the input of each convolution, which in a dense block holds all maps so
    far, and to the output where that is fp16. "weights": of all parameters, except the last convolution's at O1.
    Raises UserError when the largest is zero or not finite.
    """
    low_output = precision.output == torch.float16
    parameters = [p for name, p in model.named_parameters() if low_output or not name.startswith("output.")]
    device = parameters[0].device
    counts = {kind: torch.zeros(256, dtype=torch.int64, device=device) for kind in ("activations", "weights")}
    maxima = []

    def count(kind: str, gradient: torch.Tensor) -> None:
        magnitude = gradient.detach().abs().flatten()
        exponents = magnitude.view(torch.int32) >> 23  # biased; 0: zero or below 2^-126
        counts[kind] += torch.bincount(exponents, minlength=256)
        maxima.append(magnitude.max())

    def count_activations(gradient: torch.Tensor) -> None:
        count("activations", gradient)

    with model.computing(None, "naive"):
        for batch in batches:
            weight = 1 / batch.hr.numel()
            totals = [torch.zeros_like(p) for p in parameters]
            for lr, hr in zip(batch.lr.split(_PATCHES), batch.hr.split(_PATCHES), strict=True):
                with _ConvInputHooks(count_activations):
                    y = model(lr)
                if low_output:
                    y.register_hook(count_activations)
                gradients = torch.autograd.grad(weighted_loss(y, hr, weight, loss), parameters)
                for total, gradient in zip(totals, gradients, strict=True):
                    total.add_(gradient)
            for total in totals:
                count("weights", total)
    largest = torch.stack(maxima).max().item()
    if not torch.finfo(torch.float32).tiny <= largest < math.inf:
        problem = f"the largest gradient in float32 is {largest}; give other weights, or a number"
        raise UserError(f"--loss-scale-value auto: {problem}")
    return GradientHistogram({kind: counted.tolist() for kind, counted in counts.items()}, largest, len(batches))


class _ConvInputHooks(TorchFunctionMode):
    """Within the block, register `hook` for the gradient with respect to each convolution's input."""

    def __init__(self, hook: Callable[[torch.Tensor], None]):
        super().__init__()
        self._hook = hook

    def __torch_function__(self, function, types, arguments=(), options=None):
        if function is F.conv2d and arguments[0].requires_grad:
            arguments[0].register_hook(self._hook)
        return function(*arguments, **(options or {}))


def _is_finite(
    model: RDN, precision: Precision, batch: Batch, scale: float, loss: str, at_once: int | None = None
) -> bool:
    """Return whether all gradients of a batch are finite at this precision and loss scale, and so are their sums."""
    device, parameters, size = batch.lr.device, list(model.parameters()), at_once or len(batch.lr)
    with model.computing(precision):
        devices.clear_overflow(device)
        totals = [torch.zeros_like(p) for p in parameters]
        for lr, hr in zip(batch.lr.split(size), batch.hr.split(size), strict=True):
            scaled = weighted_loss(model(lr), hr, 1 / batch.hr.numel(), loss) * scale
            for total, gradient in zip(totals, torch.autograd.grad(scaled, parameters), strict=True):
                total.add_(gradient)
        return all(total.isfinite().all() for total in totals) and not devices.overflowed(device)
