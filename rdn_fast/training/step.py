"""A step on the device: forward, loss, backward, optimizer. `rdn-fast train` and the benchmarks run this one."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from rdn_fast import devices
from rdn_fast.distributed.gradients import GradientBuckets
from rdn_fast.distributed.process_group import Ranks
from rdn_fast.training.losses import weighted_loss
from rdn_fast.training.optimizer_step import OptimizerStep


class TrainStep:
    """step(lr, hr, weight) -> (this rank's share of the loss, whether the step was skipped: 0 or 1).

    lr: float32 [b, 3, p, p], hr: float32 [b, 3, s*p, s*p], both in 0..1. weight: float32 [], multiplies the sum of
    errors. Both results are float32 [] on the device and hold until the next call.

    The whole step is CudaGraphed, unless its optimizer step synchronizes: with several ranks the all-reduces, too. The
    optimizer must have been made for that by devices.adam(captured=True). One graph serves all batches: patches of
    weight 0 fill a smaller one.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        optimizer_step: OptimizerStep,
        device: torch.device,
        buckets: GradientBuckets | None = None,
        loss: str = "l1",
        at_once: int | None = None,
    ):
        """buckets: of the model's gradients; None for one rank. loss: of losses.py.

        at_once: so many patches are computed at a time, and their gradients added up; None: all.
        """
        self._loss, self._at_once = loss, at_once
        self._model, self._optimizer, self._optimizer_step, self._buckets = model, optimizer, optimizer_step, buckets
        self._graphed = None if optimizer_step.syncs else devices.CudaGraphed(self._eager, device)

    def __call__(
        self, lr: torch.Tensor, hr: torch.Tensor, weight: torch.Tensor, size: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """size: patches of the usual batch; an epoch's last one may be smaller."""
        if self._graphed is None or not self._graphed.captures:
            return self._eager(lr, hr, weight)
        weights = weight.repeat(len(lr))
        if (missing := size - len(lr)) > 0:  # repeat a real patch, whose output is as finite as its own
            lr, hr = (torch.cat([part, part[:1].expand(missing, -1, -1, -1)]) for part in (lr, hr))
            weights = F.pad(weights, (0, missing))
        return self._graphed(lr, hr, weights)

    def _eager(self, lr, hr, weight):
        self._optimizer.zero_grad()
        size, shares = self._at_once or len(lr), []
        for start in range(0, len(lr), size):
            part = slice(start, start + size)
            share = loss = weighted_loss(
                self._model(lr[part]), hr[part], weight[part] if weight.dim() else weight, self._loss
            )
            if self._buckets:
                self._buckets.start(averages=part.stop >= len(lr))
                loss = share * self._buckets.world  # whose gradients are averaged, not summed
            self._optimizer_step.backward(loss, first=not start)
            shares.append(share.detach())
        return sum(shares[1:], start=shares[0]), self._optimizer_step.step()


def update_average(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """average = decay * average + (1 - decay) * model, for all parameters."""
    with torch.no_grad():
        devices.foreach("lerp", list(average.parameters()), list(model.parameters()), 1 - decay)


class StepResult(NamedTuple):
    step: int  # from 1
    epoch: int
    lr: float
    loss: float  # mean over all ranks' patches
    skipped: bool
    loss_scale: float  # after the step


class ResultBuffer:
    """What the last steps computed, kept on the device until the host reads it.

    begin_read() waits for nothing, and read() only for the steps before it: where another step is enqueued between the
    two, the device goes on with that.
    """

    SIZE = 64  # steps

    def __init__(self, device: torch.device):
        self._values = torch.zeros(self.SIZE, 3, device=device)  # share of the loss, skip flag, loss scale
        self._steps: list[tuple[int, int, float]] = []
        self._begun: tuple[devices.HostCopy, list[tuple[int, int, float]]] | None = None

    @property
    def is_full(self) -> bool:
        return len(self._steps) == self.SIZE

    @property
    def is_unread(self) -> bool:
        """Whether there are results that the host does not have."""
        return bool(self._steps) or self._begun is not None

    def add(
        self,
        step: int,
        epoch: int,
        lr: float,
        share: torch.Tensor,
        skipped: torch.Tensor,
        loss_scale: torch.Tensor,
    ) -> None:
        """share, skipped, loss_scale: float32 [] on the device; they are copied."""
        self._values[len(self._steps)] = torch.stack([share, skipped, loss_scale])
        self._steps.append((step, epoch, lr))

    def begin_read(self) -> None:
        """Begin to read the results so far. The read before must be over."""
        if self._steps:
            self._begun = devices.HostCopy(self._values[: len(self._steps)]), self._steps
            self._steps = []

    def read(self, ranks: Ranks) -> list[StepResult]:
        """Return the results whose read has begun, oldest first. A collective: losses are summed over the ranks."""
        if self._begun is None:
            return []
        (copied, steps), self._begun = self._begun, None
        values = copied.read().double()
        losses = ranks.all_sum(values[:, 0].contiguous()).tolist()
        return [
            StepResult(*known, loss, bool(skipped), loss_scale)
            for known, loss, (_, skipped, loss_scale) in zip(steps, losses, values.tolist(), strict=True)
        ]
