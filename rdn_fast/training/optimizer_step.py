"""The optimizer, backward under a static loss scale, and a step that is skipped when a gradient overflowed."""

from __future__ import annotations

import torch

from rdn_fast import devices
from rdn_fast.model import RDN
from rdn_fast.training.muon import Muon
from rdn_fast.training.setup import Setup

HALVE_AFTER = 10  # consecutive skipped steps after which the loss scale is halved


class OptimizerStep:
    """backward(loss), then step(), without synchronizing: for optimizers that take `grad_scale` and `found_inf`.

    Torch's fused optimizers do. The loss scale is static, except that it is halved after HALVE_AFTER consecutive
    skipped steps, never below 1.

    scale: the loss scale, float32 [] on the device. skips_in_a_row: consecutive skipped steps since the last halving,
    float32 [] on the device.
    """

    syncs = False  # whether step() synchronizes, which a captured graph cannot

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        scale: float,
        clip: float | None = None,
        skips_in_a_row: float = 0.0,
    ):
        """clip: maximum norm of the whole gradient; None: no clipping."""
        self._optimizer, self._device, self._clip = optimizer, device, clip
        self.scale = torch.full((), float(scale), device=device)
        self.skips_in_a_row = torch.full((), float(skips_in_a_row), device=device)
        self._may_halve, self._divides = scale >= 2, scale != 1 or clip is not None

    def backward(self, loss: torch.Tensor, first: bool = True) -> None:
        """Compute the gradients of scale * loss, and add them to those that there are. first: of the step."""
        (loss * self.scale).backward()

    def step(self) -> torch.Tensor:
        """Unscale, clip and update the parameters; change nothing if a gradient is not finite.

        Returns whether the step was skipped, float32 [] on the device, 0 or 1.
        """
        norm = self._norm()
        skipped = norm.isfinite().logical_not().float()
        divisor = self.scale if self._clip is None else torch.maximum(norm / self._clip, self.scale)
        self._optimizer.grad_scale, self._optimizer.found_inf = divisor if self._divides else None, skipped
        self._optimizer.step()
        if self._may_halve:
            self.skips_in_a_row.add_(1).mul_(skipped)
            halved = (self.skips_in_a_row >= HALVE_AFTER) & (self.scale >= 2)
            self.scale.copy_(torch.where(halved, self.scale / 2, self.scale))
            self.skips_in_a_row.mul_(halved.logical_not())
        return skipped

    def _gradients(self) -> list[torch.Tensor]:
        return [p.grad for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]

    def _norm(self) -> torch.Tensor:
        """Return the 2-norm of all scaled gradients; not finite if one of them is not."""
        foreach = None if devices.supports_foreach(self._device) else False
        return torch.nn.utils.get_total_norm(self._gradients(), foreach=foreach)


class SyncingOptimizerStep(OptimizerStep):
    """An OptimizerStep for optimizers without `found_inf`: the host reads once per step whether gradients are finite.

    The device's static gradient scaler scales the loss and unscales the gradients. The read leaves the device's
    queue empty for as long as the host takes to enqueue the optimizer. On Ascend, with NpuFusedAdam's few launches
    against a step of about 118 ms, that is less than a hundredth (arithmetic, not measured).
    """

    syncs = True

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._apply_scale()

    def backward(self, loss: torch.Tensor, first: bool = True) -> None:
        if first:
            devices.clear_overflow(self._device)
        self._scaled_backward(loss)

    def _scaled_backward(self, loss: torch.Tensor) -> None:
        self._scaler.scale(loss).backward()

    def step(self) -> torch.Tensor:
        norm = self._norm()
        skipped = (norm.isfinite().logical_not() | devices.overflowed_on_any_rank(self._device)).float()
        if skipped.item():
            self._skip()
        else:
            self.skips_in_a_row.zero_()
            self._update(norm)
        return skipped

    def _update(self, norm: torch.Tensor) -> None:
        """Unscale, clip and update the parameters. norm: of the scaled gradients."""
        self._scaler.unscale_(self._optimizer)
        self._clip_unscaled(norm / self.scale)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _clip_unscaled(self, norm: torch.Tensor) -> None:
        """Clip unscaled gradients. norm: of them."""
        if self._clip is not None:
            excess = torch.clamp(norm / self._clip, min=1)
            for gradient in self._gradients():
                gradient.div_(excess)

    def _skip(self) -> None:
        self.skips_in_a_row.add_(1)
        if self._may_halve and self.skips_in_a_row >= HALVE_AFTER and self.scale >= 2:
            self.scale.div_(2)
            self.skips_in_a_row.zero_()
            self._apply_scale()

    def _apply_scale(self) -> None:
        """Hand the current scale to the scaler."""
        self._scaler = devices.static_scaler(self._device, self.scale.item())


def make_optimizer(model: RDN, setup: Setup) -> torch.optim.Optimizer:
    """Return the optimizer that the run's settings name, for the parameters where they are now."""
    c, device, by_apex = setup.train_config, setup.device, setup.uses_apex
    if c.optimizer == "muon":
        return Muon(model, device, c.lr, c.weight_decay)
    return devices.adam(model.parameters(), device, c.lr, c.weight_decay, not by_apex, by_apex)


def make_optimizer_step(optimizer: torch.optim.Optimizer, *arguments, **options) -> OptimizerStep:
    """Return the OptimizerStep that this optimizer needs. The arguments are OptimizerStep's."""
    takes_found_inf = getattr(optimizer, "_step_supports_amp_scaling", False)
    return (OptimizerStep if takes_found_inf else SyncingOptimizerStep)(optimizer, *arguments, **options)
