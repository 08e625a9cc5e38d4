"""The part of apex.amp that a static loss scale needs: the public names of Ascend's build, at least as strict.

Written for tests, from the behaviour of the real ones (NVIDIA's, and Ascend's patch of it). Raises where they fail
silently, and for what is not simulated (casts, master weights, a dynamic scale).

FAKE_APEX_COMBINE_GRAD=0: `initialize` has the parameters of a build that cannot combine gradients.
FAKE_APEX_CALLS=FILE: append every call to FILE as a line of JSON.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from collections import OrderedDict

import torch
from torch_npu.optim import NpuFusedAdam, _move_together

__all__ = ["initialize", "load_state_dict", "master_params", "scale_loss", "state_dict"]

# Defaults of a level: (cast_model_type, patch_torch_functions, master_weights).
_LEVELS = {"O1": (None, True, None), "O2": (torch.float16, False, True)}
_scalers: list[dict] = []  # {"loss_scale": float, "unskipped": int}, as in state_dict()


def _record(call: str, **details) -> None:
    if file := os.environ.get("FAKE_APEX_CALLS"):
        with open(file, "a") as lines:
            lines.write(json.dumps({"call": call, **details}) + "\n")


def initialize(
    models,
    optimizers=None,
    enabled=True,
    opt_level="O1",
    cast_model_type=None,
    patch_torch_functions=None,
    keep_batchnorm_fp32=None,
    master_weights=None,
    loss_scale=None,
    cast_model_outputs=None,
    num_losses=1,
    verbosity=1,
    min_loss_scale=None,
    max_loss_scale=2.0**24,
    combine_grad=None,
):
    """Return the model and the optimizer unchanged. scale_loss will scale by `loss_scale`.

    combine_grad: the first backward pass moves all gradients into one buffer, where they must stay.
    """
    overrides = {
        "cast_model_type": cast_model_type,
        "patch_torch_functions": patch_torch_functions,
        "master_weights": master_weights,
    }
    _record(
        "initialize",
        opt_level=opt_level,
        loss_scale=loss_scale,
        combine_grad=combine_grad,
        **{k: v and str(v) for k, v in overrides.items()},
    )
    if opt_level not in _LEVELS or not enabled or num_losses != 1 or cast_model_outputs is not None:
        raise NotImplementedError(
            "the stand-in apex has only: enabled, opt_level O1 or O2, one loss, outputs as they are"
        )
    if opt_level == "O1" and (keep_batchnorm_fp32 is not None or master_weights is not None):
        raise RuntimeError("With opt_level O1, keep_batchnorm_fp32 and master_weights should be None")
    if opt_level == "O2" and combine_grad and master_weights is not None and not master_weights:
        raise RuntimeError(
            "With opt_level O2, master_weights should be True when combine_grad is True or npu fused optimizer is used"
        )
    effective = {
        name: default if overrides[name] is None else overrides[name]
        for name, default in zip(overrides, _LEVELS[opt_level], strict=True)
    }
    for name, value in effective.items():
        if value:
            raise NotImplementedError(f"apex {opt_level} would have {name} {value}, but the model casts by itself")
    if loss_scale is None or loss_scale == "dynamic":
        raise NotImplementedError(
            "the loss scale would be dynamic, which NpuFusedAdam does not survive and resuming cannot repeat"
        )
    _check_model(models)
    if not isinstance(optimizers, torch.optim.Optimizer):
        raise TypeError("optimizers must be either a single optimizer or a list of optimizers.")
    if hasattr(optimizers, "_amp_stash"):
        raise RuntimeError("A given optimizer should only be passed through amp.initialize once.")
    if isinstance(optimizers, NpuFusedAdam):
        raise TypeError(
            "apex replaces the gradients, or moves them into a buffer of its own, and torch_npu.optim.NpuFusedAdam "
            "silently goes on reading the old ones: zeros from the second step on, or with combine_grad the sum of all "
            "steps. Give it a torch.optim.Adam."
        )
    if verbosity:
        print(f"Selected optimization level {opt_level}")
    optimizers._amp_stash = _Gradients(optimizers, bool(combine_grad))
    _scalers[:] = [{"loss_scale": float(loss_scale), "unskipped": 0}]
    return models, optimizers


def _check_model(model: torch.nn.Module) -> None:
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        raise RuntimeError(
            "Incoming model is an instance of torch.nn.parallel.DistributedDataParallel. Parallel wrappers should only "
            "be applied to the model(s) AFTER \nthe model(s) have been returned from amp.initialize."
        )
    for name, parameter in model.named_parameters():
        if parameter.type() != "torch.npu.FloatTensor":
            raise RuntimeError(f"Found param {name} with type {parameter.type()}, expected torch.npu.FloatTensor.")


class _Gradients:
    """An optimizer's gradients around a backward pass: the new ones are unscaled and added to those before."""

    def __init__(self, optimizer: torch.optim.Optimizer, combine: bool):
        self._optimizer, self._combine, self._addresses = optimizer, combine, None
        if combine:
            zero_grad = optimizer.zero_grad
            optimizer.zero_grad = lambda: self._zero() if self._addresses else zero_grad()  # takes no set_to_none

    def prepare(self) -> None:
        """Save the gradients and remove them; combined ones are set to zero in their buffer instead."""
        self._check()
        params = list(master_params(self._optimizer))
        if self._addresses:
            self._before = [p.grad.clone() for p in params]
            self._zero()
        else:
            self._before = [p.grad for p in params]
            for p in params:
                p.grad = None

    @torch.no_grad()
    def finish(self, loss_scale: float) -> None:
        """Unscale the gradients and add the saved ones. As in apex, a static scale is not checked for overflow."""
        self._check()
        params = list(master_params(self._optimizer))
        if self._combine and not self._addresses:
            if any(p.grad is None for p in params):
                raise RuntimeError("combine_grad: a parameter without a gradient in the first step is never unscaled")
            _move_together([p.grad for p in params])
            self._addresses = [p.grad.data_ptr() for p in params]
        for p, before in zip(params, self._before, strict=True):
            if p.grad is None:
                p.grad = before
            elif before is None or self._addresses:
                p.grad.mul_(1 / loss_scale).add_(0 if before is None else before)
            else:
                p.grad.data = p.grad * (1 / loss_scale) + before

    def _zero(self) -> None:
        self._check()
        for p in master_params(self._optimizer):
            p.grad.zero_()

    def _check(self) -> None:
        if self._addresses and self._addresses != [
            p.grad is not None and p.grad.data_ptr() for p in master_params(self._optimizer)
        ]:
            raise RuntimeError("combine_grad: a gradient is no longer in the buffer that is unscaled and set to zero")


@contextlib.contextmanager
def scale_loss(loss, optimizers, loss_id=0, model=None, delay_unscale=False, delay_overflow_check=False):
    """Yield loss.float() * the loss scale, float32 []. Unscale the optimizer's gradients at the end of the block."""
    if not _scalers:
        raise RuntimeError("Invoked 'with amp.scale_loss`, but internal Amp state has not been initialized.")
    if delay_unscale:
        raise NotImplementedError("the stand-in apex unscales after every backward pass")
    scaler = _scalers[loss_id]
    scale = scaler["loss_scale"]
    _record("scale_loss", loss_scale=scale)
    if scale == 1:
        yield loss.float()
        return
    optimizers._amp_stash.prepare()
    yield loss.float() * scale
    optimizers._amp_stash.finish(scale)
    scaler["unskipped"] += 1


def master_params(optimizer):
    """Yield the parameters that the optimizer updates."""
    for group in optimizer.param_groups:
        yield from group["params"]


def state_dict(destination=None):
    """Return {"loss_scaler0": {"loss_scale": float, "unskipped": int}}."""
    destination = OrderedDict() if destination is None else destination
    return destination | {f"loss_scaler{i}": dict(scaler) for i, scaler in enumerate(_scalers)}


def load_state_dict(state_dict) -> None:
    """Set the scale and the count of steps of each loss."""
    _record("load_state_dict", **state_dict)
    if state_dict.keys() != {f"loss_scaler{i}" for i in range(len(_scalers))}:
        raise RuntimeError(f"Error(s) in loading state_dict. Unexpected or missing key(s): {', '.join(state_dict)}")
    for scaler, new in zip(_scalers, state_dict.values(), strict=True):
        scaler.update(loss_scale=new["loss_scale"], unskipped=new["unskipped"])


def _without_combine_grad(function):
    signature = inspect.signature(function)
    known = signature.replace(parameters=[p for p in signature.parameters.values() if p.name != "combine_grad"])

    def initialize(*arguments, **options):
        known.bind(*arguments, **options)
        return function(*arguments, **options)

    initialize.__signature__ = known
    return initialize


if os.environ.get("FAKE_APEX_COMBINE_GRAD") == "0":
    initialize = _without_combine_grad(initialize)
