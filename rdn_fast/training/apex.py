"""`--amp-backend apex`: the loss is scaled, and gradients unscaled, by apex.amp, NVIDIA's or Ascend's.

Who computes in which dtype is the model's own (precision.py), so O1 and O2 mean the same as without apex, and apex is asked for
neither casts nor master weights. Its static scale is never checked for overflow: we do.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect

import torch

from rdn_fast import devices
from rdn_fast.errors import UserError
from rdn_fast.training.optimizer_step import SyncingOptimizerStep

_REMEDY = "build Ascend's (https://gitee.com/ascend/apex) or NVIDIA's (https://github.com/NVIDIA/apex), or leave --amp-backend at torch"


def missing() -> str | None:
    """Why apex.amp cannot be used; None when it imports."""
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return f"apex is not installed; {_REMEDY}"
    if (
        importlib.machinery.PathFinder.find_spec("apex.amp", spec.submodule_search_locations or []) is None
    ):  # whether or not apex imports
        return f"the installed `apex` has no apex.amp: it is PyPI's package of that name, another thing; `pip uninstall apex`, then {_REMEDY}"
    try:
        importlib.import_module("apex.amp")
    except Exception as error:
        return f"apex.amp does not import ({str(error).splitlines()[0] if str(error) else type(error).__name__}); {_REMEDY}"
    return None


def check(device: torch.device) -> None:
    """UserError when apex cannot be used there."""
    if devices.is_host(device):
        raise UserError("--amp-backend apex: apex takes tensors of accelerators only; leave --amp-backend at torch")
    if (reason := missing()) is not None:
        raise UserError(f"--amp-backend apex: {reason}")


class ApexOptimizerStep(SyncingOptimizerStep):
    """An OptimizerStep by apex.amp; must be made before DistributedDataParallel is put around the model."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        scale: float,
        clip: float | None,
        skips_in_a_row: float,
    ):
        self._amp = importlib.import_module("apex.amp")
        combined = (
            {"combine_grad": True} if "combine_grad" in inspect.signature(self._amp.initialize).parameters else {}
        )  # Ascend's: one buffer
        self._amp.initialize(
            model, optimizer, opt_level="O1", patch_torch_functions=False, loss_scale=scale, verbosity=0, **combined
        )
        super().__init__(optimizer, device, scale, clip, skips_in_a_row)

    def _scaled_backward(self, loss: torch.Tensor) -> None:
        with self._amp.scale_loss(loss, self._optimizer) as scaled:
            scaled.backward()

    def _apply(self, norm: torch.Tensor) -> None:
        self._limit(norm)  # apex has unscaled the gradients already
        self._optimizer.step()

    def _rescaled(self) -> None:
        self._amp.load_state_dict({"loss_scaler0": {"loss_scale": self.scale.item(), "unskipped": 0}})
