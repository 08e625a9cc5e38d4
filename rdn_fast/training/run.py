"""The training loop: batches -> model -> loss -> optimizer, on one device or, under torchrun, on several."""

from __future__ import annotations

import copy
import math
import signal
import time
from dataclasses import replace

import torch

from rdn_fast import devices
from rdn_fast.config import ModelConfig, TrainConfig
from rdn_fast.data.prefetch import Batch, PrefetchLoader
from rdn_fast.distributed.gradients import GradientBuckets
from rdn_fast.distributed.process_group import Ranks
from rdn_fast.errors import Failure, Stopped
from rdn_fast.terminal import print_line
from rdn_fast.training import resume
from rdn_fast.training.apex import ApexOptimizerStep
from rdn_fast.training.checkpoint import CheckpointWriter, checkpoint_path, host_copy
from rdn_fast.training.inputs import initial_model
from rdn_fast.training.optimizer_step import HALVE_AFTER, make_optimizer, make_optimizer_step
from rdn_fast.training.report import Report, claim_outputs, diverged
from rdn_fast.training.setup import Setup, open_run
from rdn_fast.training.state import RunState, ema_decay, learning_rate
from rdn_fast.training.step import ResultBuffer, StepResult, TrainStep, update_average
from rdn_fast.training.throughput import ThroughputMeter
from rdn_fast.training.validation import Validation
from rdn_fast.training.validator import Validator

# A run is given up after so many skipped steps in a row at a loss scale that cannot be halved.
MAX_SKIPS = 2 * HALVE_AFTER
_READ_SECONDS = 1.0  # between two reads of the steps' results


def train(model_config: ModelConfig, train_config: TrainConfig, preset: str | None = None) -> None:
    """Train as train_config says, and return when the run is complete. preset: only named in settings.toml.

    Raises UserError, Failure, and Stopped (SIGTERM or SIGINT) after saving.
    """
    with open_run(model_config, train_config, preset) as (setup, ranks, signals):
        TrainingRun(setup, ranks, signals).run()


class TrainingRun:
    def __init__(self, setup: Setup, ranks: Ranks, signals: list[int]):
        """signals: those received so far."""
        # The order matters. Before, setup.open_run() has read the ranks from the environment, picked this rank's
        # device, opened and checked the inputs (so that the user's mistakes are told before anything is started or
        # written), connected the ranks and locked the outputs folder. Then:
        #  1. Checkpoint: found, and checked against the settings. It decides precision and the device's mode.
        #  2. Mode of the device: must be set before this process has a tensor there.
        #  3. Model: initialized on the host, so that its weights depend on the seed alone, then moved.
        #  4. Optimizer: over the parameters where they are now.
        #  5. Resume: loads the optimizer before its first step, after which a fused one keeps its buffers.
        #  6. Impls: timed in the mode and the precision of the run.
        #  7. Loss scale: calibrated on the restored weights with the run's impl.
        #  8. Optimizer step: apex wraps model and optimizer.
        #  9. Buckets of gradients: copy the final parameters of rank 0 to all ranks.
        # 10. Train step: its CUDA graph will record the addresses of everything above.
        # 11. Loader: sees how much device memory is left. Its threads start with the loop.
        # 12. Writers: last, since they change the files of the run that is resumed.
        self.started = time.monotonic()
        self.ranks, self.signals = ranks, signals
        precision, checkpoint = ranks.on_rank0(resume.find_start, setup, print_line)
        setup = replace(setup, precision=precision)
        validation_dtype = ranks.on_rank0(resume.resolve_validation_dtype, setup)
        self.setup = setup = replace(setup, validation_dtype=validation_dtype)
        self.sampler, self.report = setup.inputs.sampler, Report(setup, silent=not ranks.is_rank0)
        c, device, by_apex, say = setup.train_config, setup.device, setup.uses_apex, self.report.say
        self.mode = ranks.on_rank0(resume.resolve_mode, setup, checkpoint, say)
        devices.use_mode(device, self.mode)
        devices.enable_autotuning(device)

        self.model = initial_model(setup.model_config, c.seed, setup.inputs.weights)
        self.model.to(device, memory_format=devices.memory_format(device))
        setup.precision.apply(self.model)
        self.average = copy.deepcopy(self.model) if c.ema else None
        self.optimizer = make_optimizer(self.model, setup)
        self.state = RunState()
        if checkpoint:
            self.state = resume.restore(checkpoint, setup, self.model, self.average, self.optimizer)

        self.impls = ranks.on_rank0(resume.resolve_impls, setup, checkpoint, say)
        self.model.rdb = self.impls["training"]
        if self.state.loss_scale is None:
            scale = ranks.on_rank0(resume.resolve_loss_scale, setup, self.model, self.state.step, say)
            self.state = self.state.with_loss_scale(scale)
        settings = device, self.state.loss_scale, c.clip_grad, self.state.skips_in_a_row
        if by_apex:
            self.optimizer_step = ApexOptimizerStep(self.model, self.optimizer, *settings)
        else:
            self.optimizer_step = make_optimizer_step(self.optimizer, *settings)
        sent = torch.float16 if c.all_reduce == "fp16" else torch.float32
        buckets = GradientBuckets(self.model, ranks.world, sent) if ranks.world > 1 else None
        self.train_step = TrainStep(
            self.model, self.optimizer, self.optimizer_step, device, buckets, c.loss, c.batch_size
        )
        self.results = ResultBuffer(device)
        self.left: tuple[RunState, ThroughputMeter] | None = None  # of the epoch before, until its results are read

        first, last = self.state.step, setup.total_steps
        self.loader = PrefetchLoader(self.sampler, device, c.data_mode, c.num_workers, first, last)
        self.waited = 0.0  # of loader.waited, what the state has counted
        self.read_at = self.saved_at = time.monotonic()
        self.writer = CheckpointWriter() if ranks.is_rank0 else None  # rank 0 writes for all
        self.validator = Validator(setup, ranks, self.impls, self.report, self.writer, self._signal)
        self.report.open_log(checkpoint["metrics_bytes"] if checkpoint else 0, first)
        self.report.introduce(self.model, self.state, self.impls, self.mode, self.loader.about)
        ranks.on_rank0(claim_outputs, setup, self.state, self.impls)

    def run(self) -> None:
        try:
            with self.report.bar(self.state.step), self.loader:
                while not self._is_over() or self.state.ended != self.state.step:
                    self._run_epoch()
        except Stopped as stopped:
            self._close()
            self.report.stopped(stopped, self.state.step)
            raise
        except Exception:
            self._close()  # finishes a checkpoint that is being written
            raise
        self._close()
        if self.state.skipped == self.state.step and self.ranks.is_rank0:
            remedy = "give a smaller --loss-scale-value or --lr"
            raise Failure(f"no step had finite gradients, so nothing was learnt; {remedy}")
        self.report.conclude(self.state, self._seconds())

    def _run_epoch(self) -> None:
        """Train to the end of the epoch, or of the run."""
        self.meter = ThroughputMeter(self.setup.device, self.state.epoch_speed)
        for _ in range(min(self.sampler.steps - self.state.position, self.setup.total_steps - self.state.step)):
            batch = next(self.loader)
            self.meter.start_step()
            self._train_step(batch)
            self.meter.end_step(batch.total)
            self.state = self.state.after_steps(1)
            self._poll_ranks()
            self.report.advance()
        if self.results.is_unread and self._goes_straight_on():
            self._leave_epoch()
        else:
            self._read_results()
            self._end_epoch()

    def _train_step(self, batch: Batch) -> None:
        """Enqueue a step on the device. The host waits for nothing."""
        c, device, step, epoch = self.setup.train_config, self.setup.device, self.state.step, self.state.epoch
        rate = learning_rate(c, epoch, step, self.setup.total_steps)
        devices.set_learning_rate(self.optimizer, rate, device)
        # This rank's share of the mean over all ranks' patches.
        weight = torch.full((), 1 / (batch.total * batch.hr[0].numel()) if batch.count else 0.0, device=device)
        size = min(self.sampler.batch_size, len(self.sampler))
        share, skipped = self.train_step(batch.lr, batch.hr, weight, size)
        if self.average:
            update_average(self.average, self.model, ema_decay(c.ema, step))
        self.results.add(step + 1, epoch, rate, share, skipped, self.optimizer_step.scale)

    def _signal(self) -> int:
        """Return the signal that this rank is to stop by; 0: none."""
        return signal.SIGTERM if self.ranks.agent_died() else max(self.signals, default=0)

    def _poll_ranks(self) -> None:
        """Between two steps, agree with the other ranks whether to stop, to save, and to read the results."""
        self._finish_read()  # of the steps before the last, which the device computes meanwhile
        now, rank0 = time.monotonic(), self.ranks.is_rank0
        save_due = rank0 and now - self.saved_at >= self.setup.train_config.checkpoint_every
        stop, save, read = self.ranks.all_max(
            self._signal(),
            save_due and not self.writer.busy,
            self.results.is_full or (rank0 and now - self.read_at >= _READ_SECONDS),
        )
        if stop or save:
            self._read_results()
        elif read:
            self._begin_read()
        # Skipped steps in a row may be the end of a run that diverged: nothing may push out the good checkpoints.
        if stop or (save and not self.state.skips_in_a_row):
            self._save()
        if stop:
            raise Stopped(stop)

    def _read_results(self) -> None:
        """Count and log all results. Raises Failure when the run is to be given up."""
        self._finish_read()
        self._begin_read()
        self._finish_read()

    def _begin_read(self) -> None:
        self.read_at, waited = time.monotonic(), self.loader.waited
        self.state, self.waited = replace(self.state, waited=self.state.waited + waited - self.waited), waited
        self.meter.end_lap()
        self.results.begin_read()

    def _finish_read(self) -> None:
        if not (results := self.results.read(self.ranks)):
            return
        now, left, self.left = (self.state, self.meter), self.left, None
        if left:  # all results are of that epoch
            self.state, self.meter = left
        for result in results:
            self._count(result)
        self.meter.read()
        self.state = replace(self.state, epoch_speed=[list(total) for total in self.meter.totals])
        self.report.set_status(self.state, results[-1], self.meter)
        if left:
            self._end_epoch()
            self.state, self.meter = self.state.after_steps(now[0].step - self.state.step), now[1]

    def _count(self, result: StepResult) -> None:
        self.state = self.state.after_result(result.loss, result.skipped)
        self.report.step(result)
        halved = result.loss_scale != self.state.loss_scale
        hopeless = halved and not math.isfinite(result.loss)  # no scale mends a loss that is not finite
        if hopeless or self.state.skips_in_a_row == MAX_SKIPS:
            if not self.ranks.is_rank0:
                self.ranks.leave(1)
            raise diverged(result, self.state.skips_in_a_row)
        if halved:
            self.state = self.state.with_loss_scale(result.loss_scale)
            self.report.halved_loss_scale(result.step, result.loss_scale)

    def _goes_straight_on(self) -> bool:
        """Return whether the epoch's end wants only numbers of its steps: neither a validation nor weights."""
        return not (self._is_over() or self._validation_is_due() or self._weights_are_due())

    def _leave_epoch(self) -> None:
        """Go on to the next epoch: the device has its first step when the host reads and tells how this one ended."""
        self._begin_read()
        self.left = self.state, self.meter
        self.state = self.state.after_epoch(self.sampler.steps)

    def _end_epoch(self) -> None:
        before = self.state
        self._count_time()
        self.report.epoch(self.state, self.meter)
        try:
            validation = self._validate() if self._validation_is_due() else None
        except Stopped:
            self.state = before  # a resume ends this epoch anew
            self._save()
            raise
        self.report.log_epoch(self.state, self.meter, validation, self._seconds())
        due = self._weights_are_due()
        self.state = self.state.after_epoch(self.sampler.steps)
        if due:
            self._write_weights(f"epoch_{self.state.epoch}.pth")
        if self._is_over():
            self._save()

    def _count_time(self) -> None:
        run_speed = [a + b for a, b in zip(self.state.run_speed, self.meter.measured(), strict=True)]
        (waited_ms,) = self.ranks.all_max(int(1e3 * self.state.waited))  # of the rank that waited longest
        self.state = replace(self.state, run_speed=run_speed, waited=waited_ms / 1e3)

    def _validation_is_due(self) -> bool:
        every = self.setup.train_config.eval_every
        return bool(self.setup.inputs.validation) and (self._is_over() or (self.state.epoch + 1) % every == 0)

    def _weights_are_due(self) -> bool:
        every, done = self.setup.train_config.keep_every, self.state.position >= self.sampler.steps
        return bool(every) and done and (self.state.epoch + 1) % every == 0

    def _validate(self) -> Validation:
        validation, self.state = self.validator(self.average or self.model, self.state, self._is_over())
        return validation

    def _write_weights(self, name: str) -> None:
        if self.writer:
            self.writer.put(self.setup.outputs / name, host_copy((self.average or self.model).state_dict()))

    def _save(self) -> None:
        """Hand a checkpoint of this very step, and its weights as last.pth, to the writer."""
        if not self.writer:
            return
        self.saved_at = time.monotonic()
        state, trained = replace(self.state, seconds=self._seconds()), (self.model, self.average, self.optimizer)
        metrics_bytes = self.report.synced_log_size()
        checkpoint = resume.make_checkpoint(self.setup, state, *trained, self.impls, self.mode, metrics_bytes)
        # The checkpoint last: a resume from the one before it writes last.pth anew.
        self.writer.put(self.setup.outputs / "last.pth", checkpoint["average"] or checkpoint["model"])
        self.writer.put(checkpoint_path(self.setup.outputs, state.step), checkpoint, prune=True)

    def _is_over(self) -> bool:
        early_stop = self.setup.train_config.early_stop
        return self.state.step >= self.setup.total_steps or 0 < (early_stop or 0) <= self.state.since_best

    def _seconds(self) -> float:
        """Return the wall time of the run, that of the processes before this one included."""
        return self.state.seconds + time.monotonic() - self.started

    def _close(self) -> None:
        try:
            self.report.close()
        finally:
            if self.writer:
                self.writer.close()
