"""A training step as the device sees it: forward, L1, backward, optimizer; `rdn-fast train` and the benchmarks run this one."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rdn_fast import devices
from rdn_fast.training.optimizer_step import OptimizerStep


class TrainStep:
    """step(lr, hr, weight) -> (this rank's share of the loss, whether the step was skipped: 0 or 1), both float32 [] on the device.

    lr: float32 [b, 3, p, p], hr: [b, 3, s*p, s*p], in 0..1; weight: float32 [], by which the sum of absolute errors is multiplied.
    `replica` is the model, or DDP around it. With one rank the whole step is Replayed, for batches of one shape, unless its update
    asks the host; the optimizer, from devices.adam, must have been made for that.
    """

    def __init__(self, replica, optimizer, update: OptimizerStep, device: torch.device, world: int = 1):
        """`update`: the optimizer's."""
        self._replica, self._optimizer, self._update, self._world = replica, optimizer, update, world
        self._replayed = devices.CudaGraphed(self._work, device) if world == 1 and not update.syncs else self._work

    def __call__(
        self, lr: torch.Tensor, hr: torch.Tensor, weight: torch.Tensor, usual: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`usual`: the batch has the shape that all others have. What is returned holds until the next call."""
        return (self._replayed if usual else self._work)(lr, hr, weight)

    def _work(self, lr, hr, weight):
        self._optimizer.zero_grad()
        share = weighted_l1(self._replica(lr), hr, weight)
        self._update.backward(share * self._world)  # DDP divides gradients by the number of ranks
        return share.detach(), self._update.step()


def weighted_l1(y: torch.Tensor, hr: torch.Tensor, weight: torch.Tensor | float) -> torch.Tensor:
    """Return the sum of absolute errors times `weight`, float32 []. y: any dtype, hr: float32, both [b, 3, h, w]."""
    return F.l1_loss(y.float(), hr, reduction="sum") * weight
