"""`--amp-backend apex`: scale the loss and unscale the gradients by apex.amp, NVIDIA's or Ascend's build.

The model casts by itself (precision.py), so O1 and O2 mean the same as without apex, and apex is asked for neither
casts nor master weights. It does not check for overflow at a static scale, so SyncingOptimizerStep does.

`apex` below is always the installed library: absolute imports never resolve to this module, rdn_fast.training.apex.
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

_REMEDY = (
    "build Ascend's (https://gitee.com/ascend/apex) or NVIDIA's (https://github.com/NVIDIA/apex), "
    "or leave --amp-backend at torch"
)


def missing_apex() -> str | None:
    """Return why apex.amp cannot be imported, with the remedy; None when it can."""
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return f"apex is not installed; {_REMEDY}"
    folders = spec.submodule_search_locations or []
    if importlib.machinery.PathFinder.find_spec("apex.amp", folders) is None:  # found without importing apex
        what = "the installed `apex` has no apex.amp: it is PyPI's package of that name, another thing"
        return f"{what}; `pip uninstall apex`, then {_REMEDY}"
    try:
        importlib.import_module("apex.amp")
    except Exception as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"apex.amp does not import ({first_line}); {_REMEDY}"
    return None


def check_apex(device: torch.device) -> None:
    """Raise UserError when apex cannot be used on the device."""
    if devices.is_host(device):
        raise UserError("--amp-backend apex: apex takes tensors of accelerators only; leave --amp-backend at torch")
    if (reason := missing_apex()) is not None:
        raise UserError(f"--amp-backend apex: {reason}")


class ApexOptimizerStep(SyncingOptimizerStep):
    """An OptimizerStep by apex.amp."""

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
        # Ascend's build can combine all gradients into one buffer.
        can_combine = "combine_grad" in inspect.signature(self._amp.initialize).parameters
        combine = {"combine_grad": True} if can_combine else {}
        self._amp.initialize(
            model, optimizer, opt_level="O1", patch_torch_functions=False, loss_scale=scale, verbosity=0, **combine
        )
        super().__init__(optimizer, device, scale, clip, skips_in_a_row)

    def _scaled_backward(self, loss: torch.Tensor) -> None:
        with self._amp.scale_loss(loss, self._optimizer) as scaled:
            scaled.backward()

    def _update(self, norm: torch.Tensor) -> None:
        self._clip_unscaled(norm)  # scale_loss has unscaled the gradients already
        self._optimizer.step()

    def _apply_scale(self) -> None:
        self._amp.load_state_dict({"loss_scaler0": {"loss_scale": self.scale.item(), "unskipped": 0}})
