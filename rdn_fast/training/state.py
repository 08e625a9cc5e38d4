"""Where a run is: RunState, all of which is in every checkpoint, and what follows from it.

Everything random is a function of (seed, epoch, index), and the learning rate one of (epoch, step). A checkpoint
therefore needs no generator or scheduler state, and a resumed run is bit for bit the uninterrupted one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from rdn_fast.config import TrainConfig
from rdn_fast.evaluation.metrics import mean


@dataclass(frozen=True)
class RunState:
    """Immutable: every method returns a new state."""

    step: int = 0  # optimizer steps done, skipped ones included
    epoch: int = 0
    position: int = 0  # steps done in this epoch
    skipped: int = 0  # steps whose gradients were not finite
    skips_in_a_row: int = 0  # since the last halving of the loss scale
    loss_scale: float | None = None  # None: not resolved yet
    loss_sum: float = 0.0  # over the epoch's steps that were not skipped
    loss_steps: int = 0
    best_epoch: int | None = None
    best_psnr: float = -math.inf  # dB, reference-compatible
    best_psnrs: list[float] | None = None  # of its images, as best_psnr
    best_psnrs_low: list[float] | None = None  # the same, computed in low precision; None: not comparable
    best_psnr_canonical: float = -math.inf  # dB, of the same epoch
    since_best: int = 0  # validations since the best one
    waited: float = 0.0  # seconds without a batch in this epoch
    epoch_speed: list | None = None  # throughput.ThroughputMeter.totals
    run_speed: list = field(default_factory=lambda: [0, 0.0, 0.0])  # images, end-to-end s, seed window s
    seconds: float = 0.0  # wall time of the processes before this one
    ended: int | None = None  # the step at which an epoch's end was last processed
    snapshot_step: int = 0  # of the newest sheet of crops

    @property
    def epoch_loss(self) -> float | None:
        """The mean loss of the epoch so far; None if no step counted."""
        return self.loss_sum / self.loss_steps if self.loss_steps else None

    def after_steps(self, steps: int) -> RunState:
        return replace(self, step=self.step + steps, position=self.position + steps)

    def after_result(self, loss: float, skipped: bool) -> RunState:
        """Count a step whose loss the host has read. A skipped step does not count towards the epoch's loss."""
        if skipped:
            return replace(self, skipped=self.skipped + 1, skips_in_a_row=self.skips_in_a_row + 1)
        return replace(self, skips_in_a_row=0, loss_sum=self.loss_sum + loss, loss_steps=self.loss_steps + 1)

    def with_loss_scale(self, loss_scale: float | None) -> RunState:
        """Take another loss scale, at which no step has been skipped yet."""
        return replace(self, loss_scale=loss_scale, skips_in_a_row=0)

    def is_best(self, psnrs: list[float]) -> bool:
        """Return whether this epoch, with these reference-compatible PSNRs of the images in dB, is the best one yet.

        Two epochs are compared by the images whose PSNR is finite in both: an image that is met exactly in one of them
        must not decide. Where there are none, the epoch that meets more images exactly is the better one.
        """
        before = self.best_psnrs
        if before is None or len(before) != len(psnrs):  # a new run, or another validation set
            return mean(psnrs) > self.best_psnr
        return _are_better(psnrs, before)

    def may_be_best(self, low: list[float] | None) -> bool:
        """Return whether this epoch, with these PSNRs of low precision, may be the best one; is_best() then decides.

        low: None: not measured.
        """
        before = self.best_psnrs_low
        return low is None or before is None or len(before) != len(low) or _are_better(low, before)

    def with_best(self, canonical: float, psnrs: list[float], low: list[float] | None) -> RunState:
        """Take this epoch as the best one. canonical: its mean PSNR-Y in dB. psnrs, low: as of the two above."""
        best = {"best_psnr": mean(psnrs), "best_psnrs": psnrs, "best_psnrs_low": low, "best_psnr_canonical": canonical}
        return replace(self, best_epoch=self.epoch, since_best=0, **best)

    def snapshot_is_due(self, over: bool) -> bool:
        """Return whether a validation now is to leave a sheet of crops. over: the run is."""
        return over or self.step >= 2 * self.snapshot_step

    def after_epoch(self, steps: int) -> RunState:
        """Start the counts of an epoch anew. Go to the next epoch if this one has had all its `steps`."""
        done = self.position >= steps
        position = {"epoch": self.epoch + 1, "position": 0} if done else {}
        return replace(self, loss_sum=0.0, loss_steps=0, waited=0.0, epoch_speed=None, ended=self.step, **position)


def _are_better(psnrs: list[float], before: list[float]) -> bool:
    """Return whether the images' PSNRs are better than those before, as is_best() says."""
    both = [pair for pair in zip(psnrs, before, strict=True) if math.inf not in pair]
    if not both:
        return psnrs.count(math.inf) > before.count(math.inf)
    ours, theirs = zip(*both, strict=True)
    return mean(ours) > mean(theirs)


def learning_rate(train_config: TrainConfig, epoch: int, step: int, total_steps: int) -> float:
    """Return the learning rate of step `step` (from 0 through all epochs) in `epoch`."""
    c = train_config
    rate = c.lr * min(1.0, (step + 1) / c.lr_warmup) if c.lr_warmup else c.lr
    match c.lr_schedule:
        case "cosine":
            return rate * 0.5 * (1 + math.cos(math.pi * step / total_steps))
        case "multistep":
            return rate * c.lr_gamma ** sum(epoch >= milestone for milestone in c.milestones)
        case _:
            return rate * c.lr_gamma ** (epoch // c.epochs_between_drops)


def ema_decay(limit: float, step: int) -> float:
    """Return the moving average's decay for step `step` (from 0): small at first, to forget the initial weights."""
    return min(limit, (1 + step) / (10 + step))
