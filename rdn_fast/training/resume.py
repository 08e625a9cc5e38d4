"""Checkpoints of a run: what they hold, what a resume must match, and how a run goes on from one."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from rdn_fast import devices, precision
from rdn_fast.auto_level import resolve_precision
from rdn_fast.data.prefetch import Batch
from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from rdn_fast.precision import Precision
from rdn_fast.rdb import able, select
from rdn_fast.rdb.autotune import fastest_mode, resolve_impl
from rdn_fast.rdb.case import Case
from rdn_fast.rdb.measure import why_not
from rdn_fast.training import loss_scale
from rdn_fast.training.apex import check_apex
from rdn_fast.training.checkpoint import host_copy, load_checkpoint
from rdn_fast.training.run_folder import set_aside
from rdn_fast.training.setup import Setup
from rdn_fast.training.state import RunState


def settings(setup: Setup) -> dict:
    """Return what a resume cannot change."""
    c, sampler = setup.train_config, setup.inputs.sampler
    return {
        **dataclasses.asdict(setup.model_config),
        "patch_size": c.patch_size,
        "global_batch": sampler.global_batch,
        "seed": c.seed,
        "patches_per_epoch": len(sampler),
        "drop_last": c.drop_last,
        "lr_made_by": sampler.pairs.lr_made_by,
        "sizes_of_pictures": hashlib.sha256(sampler.pairs.sizes.tobytes()).hexdigest()[:8],
        "precision": str(setup.precision),
        "ema": c.ema,
        "optimizer": c.optimizer,
    }


def recipe(setup: Setup) -> dict:
    """Return what a resume may change; then it is not exact."""
    c = setup.train_config
    schedule = {"lr": c.lr, "lr_schedule": c.lr_schedule, "lr_gamma": c.lr_gamma, "lr_warmup": c.lr_warmup}
    match c.lr_schedule:
        case "cosine":
            schedule["total_steps"] = setup.total_steps
        case "multistep":
            schedule["lr_milestones"] = c.milestones
        case _:
            schedule["lr_step"] = c.epochs_between_drops
    scaling = {"loss_scale": c.loss_scale, "amp_backend": c.amp_backend} if setup.precision.scaled else {}
    names = "loss", "weight_decay", "clip_grad", "accumulate", "all_reduce"
    return {**schedule, **{name: getattr(c, name) for name in names}, **scaling}


def find_start(setup: Setup, say: Callable[[str], None]) -> tuple[Precision, dict | None]:
    """Return the run's precision, and the checkpoint to go on from; None: a new run. For rank 0.

    The checkpoint is checked against the settings. Moves files of another run, or of later steps, out of the outputs
    folder. Raises UserError.
    """
    resume, outputs = setup.train_config.resume, setup.outputs
    checkpoint = load_checkpoint(resume, outputs, say) if resume is not None else None
    setup = dataclasses.replace(setup, precision=_resolve_precision(setup, checkpoint))
    if setup.uses_apex:
        check_apex(setup.device)
    if (rdb := setup.train_config.rdb) != "auto":
        select(rdb, setup.device, setup.precision.compute, True)  # before files are moved
    if checkpoint is None:
        set_aside(outputs, say)
        return setup.precision, None
    step = checkpoint["step"]
    if changes := _changes({"optimizer": "adam"} | checkpoint["settings"], settings(setup)):  # older ones do not say
        raise UserError(f"--resume {resume}: a resume needs the settings of the checkpoint, but {changes}")
    if step > setup.total_steps:
        raise UserError(
            f"--resume {resume}: the checkpoint is at step {step}, behind the {setup.total_steps} steps asked for; "
            "give more"
        )
    if resume != "auto":
        ours = Path(resume).resolve().parent == (outputs / "checkpoints").resolve()
        set_aside(outputs, say, after=(step, checkpoint["progress"]["epoch"]) if ours else None)
        checkpoint["metrics_bytes"] *= ours
    say(f"resumed at step {step}, epoch {checkpoint['progress']['epoch']}")
    if changes := _changes(checkpoint["recipe"], recipe(setup)):
        say(f"note: {changes}: not the run that it was")
    return setup.precision, checkpoint


def _resolve_precision(setup: Setup, checkpoint: dict | None) -> Precision:
    """Return what the flags stand for; "auto" keeps to the checkpoint's level and dtype."""
    c, shape = setup.train_config, _training_shape(setup)
    level, dtype = c.opt_level, c.amp_dtype
    if checkpoint and level == "auto":
        before = precision.parse(checkpoint["settings"]["precision"])
        if dtype == "auto":
            return before
        level = before.level
    return resolve_precision(level, dtype, setup.device, setup.model_config, shape, c.rdb)


def _changes(old: dict, new: dict) -> str:
    """Return what differs, as words; "" if nothing does."""
    return "; ".join(f"{key} was {value}, now {new.get(key)}" for key, value in old.items() if new.get(key) != value)


def resolve_mode(setup: Setup, checkpoint: dict | None, say: Callable[[str], None]) -> str:
    """Return the device's mode: the checkpoint's, or the one that `rdn-fast tune` found the fastest. For rank 0."""
    if checkpoint is None:
        return fastest_mode(_training_case(setup))
    mode, device = checkpoint["mode"], setup.device
    if mode and mode not in devices.modes(device):
        say(
            f"note: the steps before were computed in mode {mode}, which {device} does not have: "
            "the same but for rounding"
        )
        return ""
    return mode


def resolve_validation_dtype(setup: Setup) -> torch.dtype:
    """Return what validation computes in where float32 is not asked for: as training, unless this device emulates that.

    For rank 0: ranks validate in one dtype, whatever the processors of other nodes have.
    """
    dtype = setup.precision.compute
    return dtype if devices.has_instructions(setup.device, dtype) else torch.float32


def resolve_impls(setup: Setup, checkpoint: dict | None, say: Callable[[str], None]) -> dict[str, str]:
    """Return {"training": impl, "validation": impl}, and "validation_low" where low precision validates, too.

    "auto" keeps to the checkpoint's impls. For rank 0.

    Raises UserError when the impl that was asked for fails here.
    """
    before = checkpoint.get("rows", {}) if checkpoint else {}
    asked, impls, low = setup.train_config.rdb, {}, setup.validation_dtype
    cases = {"training": _training_case(setup), "validation": _validation_case(setup, torch.float32)}
    if setup.inputs.validation and low != torch.float32:
        cases["validation_low"] = _validation_case(setup, low)
    for use, case in cases.items():
        here = [impl.name for impl in able(case.device, case.dtype, case.training)]
        name = asked if use == "training" or asked in here else "auto"
        wanted = before[use] if name == "auto" and before.get(use) in here else name
        impls[use] = resolve_impl(wanted, case)
        if wanted != "auto" and (reason := why_not(impls[use], case)):
            if name != "auto":
                raise UserError(f"--rdb {name} {reason}; choose another --rdb")
            say(f"note: {wanted}, which computed the steps before, now {reason}")
            impls[use] = resolve_impl("auto", case)
        if impls[use] != before.get(use, impls[use]):
            say(f"note: --rdb for {use} was {before[use]}, now {impls[use]}: the same but for rounding")
    return impls


def _training_case(setup: Setup) -> Case:
    return Case.of(setup.model_config, _training_shape(setup), setup.device, setup.precision.compute, True)


def _training_shape(setup: Setup) -> tuple[int, int, int, int]:
    c = setup.train_config
    return c.batch_size, 3, c.patch_size, c.patch_size


def _validation_case(setup: Setup, dtype: torch.dtype) -> Case:
    pairs, p = setup.inputs.validation, setup.train_config.patch_size
    height, width = pairs[0].lr.shape[:2] if pairs else (p, p)
    return Case.of(setup.model_config, (1, 3, height, width), setup.device, dtype, False)


def resolve_loss_scale(setup: Setup, model: RDN, step: int, say: Callable[[str], None]) -> float:
    """Return the loss scale of the next step as float32 holds it: 1 where gradients need none. For rank 0.

    "auto" is calibrated on the batches that follow `step`.
    """

    def batches() -> list[Batch]:
        return loss_scale.sample_batches(setup.inputs.sampler, setup.device, step)

    c = setup.train_config
    asked = c.loss_scale
    if not setup.precision.scaled:
        return 1.0
    if asked == "auto":
        resolved = loss_scale.resolve(model, setup.precision, batches, c.loss, c.batch_size)
        for line in resolved.lines:
            say(line)
        asked = resolved.scale
    return torch.tensor(asked, dtype=torch.float32).item()


def make_checkpoint(
    setup: Setup,
    state: RunState,
    model: RDN,
    average: RDN | None,
    optimizer: torch.optim.Optimizer,
    impls: dict[str, str],
    mode: str,
    metrics_bytes: int,
) -> dict:
    """Return everything that the run needs to go on exactly, tensors as copies on the host."""
    return host_copy(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": average.state_dict() if average else None,
            "step": state.step,
            "progress": dataclasses.asdict(state),
            "metrics_bytes": metrics_bytes,
            "settings": settings(setup),
            "recipe": recipe(setup),
            "rows": impls,
            "mode": mode,
        }
    )


def restore(
    checkpoint: dict, setup: Setup, model: RDN, average: RDN | None, optimizer: torch.optim.Optimizer
) -> RunState:
    """Load the checkpoint into the model, its average and the optimizer; return where its run was."""
    model.load_state_dict(checkpoint["model"])
    if average:
        average.load_state_dict(checkpoint["average"])
    _restore_optimizer(optimizer, checkpoint["optimizer"])
    state = RunState(**checkpoint["progress"])
    if recipe(setup).get("loss_scale") != checkpoint["recipe"].get("loss_scale"):
        state = state.with_loss_scale(None)
    return state


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Load the state of such an optimizer, perhaps of another device's, and keep this one's options."""
    for slots in saved["state"].values():
        if "step" in slots:
            slots["step"] = int(slots["step"])  # a tensor or a number; every Adam takes a number
    saved["param_groups"] = [
        options | {"params": group["params"]}
        for options, group in zip(optimizer.param_groups, saved["param_groups"], strict=True)
    ]
    optimizer.load_state_dict(saved)
    for parameter, slots in optimizer.state.items():
        for key, value in slots.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                slots[key] = torch.empty_like(parameter).copy_(value)  # in the parameter's memory format again
