"""The validations of a run: in which precision they are, which epoch is the best, and what is kept of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from rdn_fast.data.degradation import Degradation
from rdn_fast.distributed.in_touch import InTouch
from rdn_fast.distributed.process_group import Ranks
from rdn_fast.evaluation import sheet
from rdn_fast.model import RDN
from rdn_fast.training.checkpoint import CheckpointWriter, host_copy
from rdn_fast.training.report import Report
from rdn_fast.training.setup import Setup
from rdn_fast.training.snapshot import Snapshot, new_sheet_path
from rdn_fast.training.state import RunState
from rdn_fast.training.validation import Validation, validate


class Validator:
    """validator(model, state, over) -> (validation, the state after it). A collective.

    Where training has low precision, so has validation. What may be the best so far is measured in float32, and so is
    what has a snapshot, and the run's last epoch. Hands best.pth and the snapshot's sheet to the writer.
    """

    def __init__(
        self,
        setup: Setup,
        ranks: Ranks,
        impls: dict[str, str],
        report: Report,
        writer: CheckpointWriter | None,
        signal_now: Callable[[], int],
    ):
        """impls: of resume.resolve_impls(). writer: None on ranks other than 0. signal_now: as of InTouch."""
        self._setup, self._ranks, self._impls, self._report = setup, ranks, impls, report
        self._writer, self._signal_now = writer, signal_now

    def __call__(self, model: RDN, state: RunState, over: bool) -> tuple[Validation, RunState]:
        """over: whether the run is. Raises Stopped at a signal to any rank."""
        state, early_stop = replace(state, since_best=state.since_best + 1), self._setup.train_config.early_stop
        over = over or (early_stop is not None and state.since_best >= early_stop)  # unless this is the best one
        snapshot = self._snapshot() if state.snapshot_is_due(over) else None
        low, dtype = None, self._setup.validation_dtype
        if dtype != torch.float32:
            validation = self._measure(model, "validation_low", dtype)
            low = None if math.isnan(validation.compatible) else validation.psnrs
        if low is None or snapshot or over or state.may_be_best(low):
            validation = self._measure(model, "validation", torch.float32, snapshot)
            if state.may_be_best(low) and state.is_best(validation.psnrs):
                state = state.with_best(validation.canonical, validation.psnrs, low)
                if self._writer:
                    self._writer.put(self._setup.outputs / "best.pth", host_copy(model.state_dict()))
        self._report.validation(state.epoch, validation)
        if snapshot:
            state = self._keep(snapshot, state)
        return validation, state

    def _snapshot(self) -> Snapshot:
        c = self._setup.train_config
        degradation = Degradation.of_flags(c.bicubic, c.degradation)
        return Snapshot(len(self._setup.inputs.validation), degradation, self._setup.model_config.scale)

    def _measure(self, model: RDN, use: str, dtype: torch.dtype, snapshot: Snapshot | None = None) -> Validation:
        """use: key of the impl. snapshot: looks at the outputs."""
        impl, pairs, look = self._impls[use], self._setup.inputs.validation, snapshot.look if snapshot else None
        in_touch = InTouch(self._ranks, self._signal_now)
        return validate(model, impl, pairs, self._ranks, in_touch, self._report.say, dtype, look)

    def _keep(self, snapshot: Snapshot, state: RunState) -> RunState:
        """Hand the snapshot's sheet of crops to the writer and to TensorBoard. A collective."""
        seen = snapshot.sheet(self._ranks, state.step)
        if seen and self._writer:
            png = sheet.encode(seen)
            self._report.picture(state.step, png)
            self._writer.put(new_sheet_path(self._setup.outputs, state.step), png)
        return replace(state, snapshot_step=state.step)
