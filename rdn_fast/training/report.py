"""Everything that a run prints and logs. Lines that other tools grep stay as they are: README and tests name them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import torch

from rdn_fast import __version__, devices
from rdn_fast.config import TrainConfig
from rdn_fast.config.settings_file import as_toml
from rdn_fast.errors import Failure, Stopped
from rdn_fast.files import atomic_write
from rdn_fast.model import RDN
from rdn_fast.precision import dtype_name
from rdn_fast.terminal import Bar, clock, print_line
from rdn_fast.training import resume
from rdn_fast.training.metrics_log import MetricsLog
from rdn_fast.training.optimizer_step import HALVE_AFTER
from rdn_fast.training.run_folder import SETTINGS, claim
from rdn_fast.training.setup import Setup
from rdn_fast.training.state import RunState
from rdn_fast.training.step import StepResult
from rdn_fast.training.throughput import WARM_UP, ThroughputMeter, per_second
from rdn_fast.training.validation import Validation


class Report:
    """Prints lines and a bar, and writes metrics.jsonl. With `silent`, on ranks other than 0, it does neither."""

    def __init__(self, setup: Setup, silent: bool):
        self._setup, self._silent = setup, silent
        self._log: MetricsLog | None = None
        self._bar: Bar | None = None
        self._status = ""  # beside the bar

    def say(self, line: str) -> None:
        if self._bar:
            self._bar.say(line)
        elif not self._silent:
            print_line(line)

    def open_log(self, keep_bytes: int, step: int) -> None:
        """keep_bytes, step: what the checkpoint to go on from says; 0 for a new run."""
        if not self._silent:
            self._log = MetricsLog(self._setup.outputs, keep_bytes, step)

    def synced_log_size(self) -> int:
        """Flush and fsync metrics.jsonl; return its size in bytes. For rank 0."""
        return self._log.synced_size()

    def close(self) -> None:
        if self._log:
            self._log.close()

    def _write(self, record: dict) -> None:
        if self._log:
            self._log.write(record)

    @contextmanager
    def bar(self, done: int) -> Iterator[None]:
        """Show a bar of the run's steps, `done` of them done before."""
        with Bar("step", self._setup.total_steps, done, quiet=self._silent) as bar:
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None

    def introduce(self, model: RDN, state: RunState, impls: dict[str, str], mode: str, about_loader: str) -> None:
        """Tell and log what runs where, and on what data."""
        s, c, sampler = self._setup, self._setup.train_config, self._setup.inputs.sampler
        scaling = f", loss scale {state.loss_scale:.10g} ({c.amp_backend})" if s.precision.scaled else ""
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        rdb = impls["training"] + (f", mode {mode}" if mode else "")
        self.say(
            f"rdn-fast {__version__}: x{s.model_config.scale} RDN, {millions:.2f} M parameters, "
            f"{s.precision}{scaling}, rdb {rdb}, torch {torch.__version__}"
        )
        if state.step == 0 and s.inputs.about_weights:
            self.say(s.inputs.about_weights)
        at_once = f"{c.accumulate} x {c.batch_size}" if c.accumulate > 1 else c.batch_size
        patches = f"{s.world} x {at_once} patches of {c.patch_size}x{c.patch_size}"
        self.say(f"on {devices.describe(s.device)}: {patches} per step")
        if s.precision.scaled and not devices.has_instructions(s.device, s.precision.compute):
            self.say(f"note: on this CPU, which emulates {dtype_name(s.precision.compute)}, --opt-level O0 is faster")
        self.say(f"{sampler.pairs.path}: {sampler.patches} patches per epoch, {sampler.steps} steps")
        self.say(f"LR images: {s.inputs.lr_in_words}")
        self.say(about_loader)
        self.say(f"learning rate {c.lr:g}, {_schedule_in_words(c, s.total_steps)}")
        if left_out := sampler.left_out:
            self.say(f"left out {len(left_out)} images smaller than the patch: {', '.join(left_out)}")
        if not s.inputs.validation:
            self.say("no --eval-file: nothing is validated and no best.pth is written")
        self._write(_start_record(s, state, impls, mode))

    def step(self, result: StepResult) -> None:
        record = {"event": "step", "step": result.step, "epoch": result.epoch, "lr": result.lr}
        self._write({**record, **({"skipped": True} if result.skipped else {}), "loss": result.loss})

    def halved_loss_scale(self, step: int, loss_scale: float) -> None:
        self.say(
            f"step {step}: the gradients of {HALVE_AFTER} steps in a row overflowed; "
            f"the loss scale is halved to {loss_scale:.10g}"
        )
        self._write({"event": "loss_scale", "step": step, "loss_scale": loss_scale})

    def set_status(self, state: RunState, last: StepResult, meter: ThroughputMeter) -> None:
        """Set what the bar shows beside itself from now on."""
        images, seconds, window = meter.measured()
        speeds = f"{per_second(images, seconds):.4g} img/s ({per_second(images, window):.4g} seed)  " if seconds else ""
        self._status = (
            f"epoch {state.epoch}  loss {last.loss:.4f}  {speeds}waited {state.waited:.2f} s  lr {last.lr:.1e}"
        )

    def advance(self) -> None:
        """Move the bar by one step."""
        self._bar.advance(self._status)

    def epoch(self, state: RunState, meter: ThroughputMeter) -> None:
        """Print the epoch's loss and speeds."""
        record = self._epoch_record(state, meter)
        self.say(f"epoch:{state.epoch} FPS: {record['fps_seed_window']:.3f}")
        loss = f"loss {record['loss']:.5f}" if state.loss_steps else "no step counted"
        rate = f"{record['fps_end_to_end']:.4g} img/s end-to-end ({record['gflops_end_to_end']:.0f} GFLOP/s)"
        note = "" if meter.totals[1][0] else f" (all steps counted: there were no more than {WARM_UP})"
        speeds = f"{rate}, {record['fps_seed_window']:.4g} in the seed window{note}"
        skipped = f", {state.skipped} steps skipped so far" if state.skipped else ""
        self.say(f"epoch {state.epoch}: {loss}, {speeds}, waited {state.waited:.2f} s for data{skipped}")

    def validation(self, epoch: int, v: Validation) -> None:
        low = f" ({v.dtype})" if v.dtype != "float32" else ""
        means = f"{v.canonical:.2f} dB canonical, {v.compatible:.2f} dB reference-compatible"
        self.say(f"epoch {epoch}: PSNR-Y {means}{low}")
        if v.exact:
            of_all = f"{v.exact} of {len(v.psnrs)} images"
            self.say(f"epoch {epoch}: {of_all} left out of these means: equal to the HR image, so the PSNR is infinite")

    def picture(self, step: int, png: bytes) -> None:
        if self._log:
            self._log.write_picture(step, png)

    def log_epoch(self, state: RunState, meter: ThroughputMeter, validation: Validation | None, seconds: float) -> None:
        """validation: None where there was none."""
        v = validation
        scores = {"psnr_y": v.canonical, "psnr_y_compat": v.compatible} if v else {}
        scores |= {"infinite": v.exact} if v and v.exact else {}
        scores |= {"psnr_dtype": v.dtype} if v and v.dtype != "float32" else {}
        self._write({**self._epoch_record(state, meter), **scores, "seconds": seconds})

    def _epoch_record(self, state: RunState, meter: ThroughputMeter) -> dict:
        images, seconds, window = meter.measured()
        return {
            "event": "epoch",
            "step": state.step,
            "epoch": state.epoch,
            "loss": state.epoch_loss,
            "skipped": state.skipped,
            "fps_end_to_end": per_second(images, seconds),
            "fps_seed_window": per_second(images, window),
            "gflops_end_to_end": per_second(images, seconds) * self._setup.flop / 1e9,
            "data_wait_s": state.waited,
        }

    def stopped(self, stopped: Stopped, step: int) -> None:
        self.say(f"{stopped}: saved at step {step}; go on with --resume auto")

    def conclude(self, state: RunState, seconds: float) -> None:
        """Print the run's results. seconds: wall time of the whole run."""
        validated, outputs = state.best_epoch is not None, self._setup.outputs
        if state.step < self._setup.total_steps:
            self.say(f"stopped early: no better PSNR in {state.since_best} validations in a row")
        images, end_to_end, window = state.run_speed
        if validated:
            self.say(f"best epoch: {state.best_epoch}, psnr: {state.best_psnr:.2f}")
            self.say(
                f"canonical PSNR-Y of that epoch: {state.best_psnr_canonical:.2f} dB "
                "(the line above is reference-compatible)"
            )
        self.say(
            f"whole run: {per_second(images, end_to_end):.3f} img/s end-to-end, "
            f"{state.skipped} of {state.step} steps skipped, {clock(seconds)}"
        )
        self.say(f"weights: {outputs / 'last.pth'}" + (f", {outputs / 'best.pth'}" if validated else ""))
        self.say(f"Final Performance images/sec : {per_second(images, window):.3f}")
        self.say(f"Final Train Accuracy : {f'{state.best_psnr:.2f}' if validated else 'not validated'}")
        self.say(f"E2E Training Duration sec : {seconds:.1f}")


def _schedule_in_words(c: TrainConfig, total_steps: int) -> str:
    warm_up = f"rising over {c.lr_warmup} steps, then " if c.lr_warmup else ""
    match c.lr_schedule:
        case "cosine":
            return f"{warm_up}falling to 0 at step {total_steps} (cosine)"
        case "multistep":
            return f"{warm_up}times {c.lr_gamma:g} at the epochs {', '.join(map(str, c.milestones))}"
        case _:
            return f"{warm_up}times {c.lr_gamma:g} every {c.epochs_between_drops} epochs"


def _start_record(setup: Setup, state: RunState, impls: dict[str, str], mode: str) -> dict:
    files = setup.train_config.files(setup.model_config.scale)
    train_file, eval_file = (path and path.name for path in files)
    weights = setup.train_config.weights_file
    return {
        "event": "resume" if state.step else "start",
        "step": state.step,
        "device": devices.describe(setup.device),
        "world": setup.world,
        "torch": torch.__version__,
        "date": datetime.now().isoformat(timespec="seconds"),
        "rdn_fast": __version__,
        **resume.settings(setup),
        "recipe": resume.recipe(setup),
        "steps": setup.total_steps,
        "train_file": train_file,
        "eval_file": eval_file,
        "weights_file": weights and Path(weights).name,
        "loss_scale": state.loss_scale,
        "rdb": impls,
        "mode": mode,
    }


def claim_outputs(setup: Setup, state: RunState, impls: dict[str, str]) -> None:
    """Record whose run the outputs folder holds, and its settings.toml, which --config takes. For rank 0."""
    claim(setup.outputs, setup.launches, setup.inputs.sampler.global_batch)
    rdb = impls["training"]
    auto = f"device {setup.device}, precision {setup.precision}, loss scale {state.loss_scale:g}, rdb {rdb}"
    comments = (
        f"The settings of a run of rdn_fast {__version__}. The same run again: rdn-fast train --config {SETTINGS}",
        f'Ranks: {setup.world}. What "auto" came to: {auto}.',
    )
    text = as_toml(setup.model_config, setup.train_config, setup.preset, comments)
    atomic_write(setup.outputs / SETTINGS, lambda file: file.write(text.encode()))


def diverged(last: StepResult, skips: int) -> Failure:
    cause = f"the loss is {last.loss:.4g}" if math.isfinite(last.loss) else "the loss itself is not finite"
    good = last.step - skips
    return Failure(
        f"steps {good + 1} to {last.step} had gradients that are not finite and were skipped; {cause}. The weights are "
        f"those of step {good}; go on from the last checkpoint with --resume auto and a smaller --lr or --clip-grad 1"
    )
