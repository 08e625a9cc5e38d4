"""From a loss to changed weights: backward under a static loss scale, and an optimizer step that skips overflowed gradients."""

from __future__ import annotations

import torch

from rdn_fast import devices

HALVE_AFTER = 10  # steps in a row that overflow before the scale is halved


class OptimizerStep:
    """backward(loss), then step(). The scale stays what it was given as; only after `HALVE_AFTER` skipped steps in a row it is halved, not below 1.

    `scale` and `streak` (skipped steps in a row since the last halving) are float32 [] on the device. This one asks nothing of the host:
    it is for optimizers that take `grad_scale` and `found_inf`, as torch's fused ones.
    """

    syncs = False  # whether a step needs the host's answer

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        scale: float,
        clip: float | None = None,
        skips_in_a_row: float = 0.0,
    ):
        """`clip`: the largest norm of the whole gradient; None: any."""
        self._optimizer, self._device, self._clip = optimizer, device, clip
        self.scale, self.skips_in_a_row = (
            torch.full((), float(value), device=device) for value in (scale, skips_in_a_row)
        )
        self._halves, self._divides = scale >= 2, scale != 1 or clip is not None

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of scale * loss."""
        (loss * self.scale).backward()

    def step(self) -> torch.Tensor:
        """One optimizer step from them. One that is not finite makes it change nothing; returns whether that was so: float32 [], 0 or 1."""
        norm = self._norm()
        skipped = norm.isfinite().logical_not().float()
        divisor = self.scale if self._clip is None else torch.maximum(norm / self._clip, self.scale)
        self._optimizer.grad_scale, self._optimizer.found_inf = divisor if self._divides else None, skipped
        self._optimizer.step()
        if self._halves:
            self.skips_in_a_row.add_(1).mul_(skipped)
            halved = (self.skips_in_a_row >= HALVE_AFTER) & (self.scale >= 2)
            self.scale.copy_(torch.where(halved, self.scale / 2, self.scale))
            self.skips_in_a_row.mul_(halved.logical_not())
        return skipped

    def _gradients(self) -> list[torch.Tensor]:
        return [p.grad for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]

    def _norm(self) -> torch.Tensor:
        return torch.nn.utils.get_total_norm(
            self._gradients(), foreach=None if devices.supports_foreach(self._device) else False
        )


class SyncingOptimizerStep(OptimizerStep):
    """For other optimizers: the host reads whether gradients are finite, once a step. The device's static gradient scaler scales and unscales.

    The read lets the device's queue run empty for as long as the host takes to ask for the optimizer's step: on Ascend, with NpuFusedAdam's
    few launches against a step of about 118 ms, less than a hundredth (arithmetic, not measured).
    """

    syncs = True

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._rescaled()

    def backward(self, loss: torch.Tensor) -> None:
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
            self._apply(norm)
        return skipped

    def _apply(self, norm: torch.Tensor) -> None:
        """Change the weights; norm: of the gradients as they are, scaled."""
        self._scaler.unscale_(self._optimizer)
        self._limit(norm / self.scale)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _limit(self, norm: torch.Tensor) -> None:
        """Make unscaled gradients of this norm no longer than `clip`."""
        if self._clip is not None:
            excess = torch.clamp(norm / self._clip, min=1)
            for gradient in self._gradients():
                gradient.div_(excess)

    def _skip(self) -> None:
        self.skips_in_a_row.add_(1)
        if self._halves and self.skips_in_a_row >= HALVE_AFTER and self.scale >= 2:
            self.scale.div_(2)
            self.skips_in_a_row.zero_()
            self._rescaled()

    def _rescaled(self) -> None:
        """The scale has another value."""
        self._scaler = devices.static_scaler(self._device, self.scale.item())


def make_optimizer_step(optimizer: torch.optim.Optimizer, *arguments, **options) -> OptimizerStep:
    """The kind of OptimizerStep that this optimizer needs; arguments as Update's."""
    takes_flags = getattr(optimizer, "_step_supports_amp_scaling", False)
    return (OptimizerStep if takes_flags else SyncingOptimizerStep)(optimizer, *arguments, **options)
