"""The training loop: batches -> model -> L1 -> optimizer, on one device or, under torchrun, on several.

Everything random is a function of (seed, epoch, index), and the learning rate one of (epoch, step): a checkpoint needs no
generator or scheduler state, and a resumed run is bit for bit the uninterrupted one.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import signal
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from rdn_fast import __version__, devices, precision
from rdn_fast.config import ModelConfig, TrainConfig
from rdn_fast.data.patches import to_float
from rdn_fast.data.prefetch import Batch, PrefetchLoader
from rdn_fast.distributed.process_group import Ranks
from rdn_fast.errors import Failure, LostContact, Stopped, UserError
from rdn_fast.evaluation import metrics
from rdn_fast.model import RDN
from rdn_fast.rdb import able
from rdn_fast.rdb.autotune import Case, fastest_mode, resolve_impl
from rdn_fast.terminal import Bar, clock
from rdn_fast.training import loss_scale
from rdn_fast.training.apex import ApexOptimizerStep, check_apex
from rdn_fast.training.checkpoint import CheckpointWriter, checkpoint_path, host_copy, load_checkpoint
from rdn_fast.training.inputs import Inputs, check_same, initial_model, open_inputs, shared_flags
from rdn_fast.training.metrics_log import MetricsLog
from rdn_fast.training.optimizer_step import HALVE_AFTER, make_optimizer_step
from rdn_fast.training.run_folder import claim, locked, resumable_batch, set_aside
from rdn_fast.training.step import TrainStep
from rdn_fast.training.throughput import WARM_UP, ThroughputMeter, per_second

MAX_SKIPS = (
    2 * HALVE_AFTER
)  # consecutive steps without a finite gradient, at a scale that cannot be halved, before a run is given up
_FLUSH_STEPS = 64  # losses kept on the device at most before the host reads them
_FLUSH_SECONDS = 1.0


@dataclasses.dataclass
class RunState:
    """Where a run is; all of it is in every checkpoint. Steps of an epoch are counted in `position`."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    skipped: int = 0
    skips_in_a_row: int = 0  # since the last halving of the loss scale
    loss_scale: float | None = None  # None: to be chosen
    loss_sum: float = 0.0  # over the epoch's steps with finite gradients
    loss_steps: int = 0
    best_epoch: int | None = None
    best_psnr: float = -math.inf  # reference-compatible
    best_psnr_canonical: float = -math.inf
    waited: float = 0.0  # seconds of the epoch without a batch
    epoch_speed: list | None = None  # speed.ThroughputMeter.totals
    run_speed: list = dataclasses.field(default_factory=lambda: [0, 0.0, 0.0])
    seconds: float = 0.0
    ended: int | None = None  # the step at which the last epoch's end was done


def train(model_config: ModelConfig, config: TrainConfig) -> None:
    """Train as `config` says; returns when the run is complete.

    Raises Stopped (SIGTERM or SIGINT, after saving), UserError and Failure.
    """
    ranks, outputs = Ranks(), Path(config.outputs_dir)
    try:
        device = devices.pick(config.device, config.device_id, ranks.local_rank)
        inputs = open_inputs(model_config, config, ranks.rank, ranks.world, device)
        ranks.connect(device)
        with locked(outputs, ranks), _signals(ranks) as signals:
            ranks.on_rank0(check_same, ranks.gather(shared_flags(model_config, config, inputs)))
            launches = ranks.launch_ids()
            if (
                batch := ranks.on_rank0(resumable_batch, outputs, launches)
            ) is not None:  # the ranks were started anew, perhaps more or fewer of them
                if batch % ranks.world:
                    raise UserError(
                        f"--nnodes: a batch of {batch} patches cannot be shared out evenly to {ranks.world} ranks; start anew with other nodes"
                    )
                config = dataclasses.replace(config, resume="auto", batch_size=batch // ranks.world)
                inputs = open_inputs(model_config, config, ranks.rank, ranks.world, device)
            run = _Run(model_config, config, inputs, ranks, device, outputs, signals)
            ranks.on_rank0(claim, outputs, launches, inputs.sampler.global_batch)
            run.run()
        ranks.close()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Failure(
            f"{error.filename or outputs}: {error.strerror or error}; mend it, then go on with --resume auto"
        ) from None
    except RuntimeError as error:
        if (what := ranks.describe_lost_rank(error)) is None:
            raise
        raise LostContact(f"{what}; go on with --resume auto") from None


class _Run:
    def __init__(
        self,
        model_config: ModelConfig,
        config: TrainConfig,
        inputs: Inputs,
        ranks: Ranks,
        device: torch.device,
        outputs: Path,
        signals: list[int],
    ):
        self.began = time.monotonic()
        self.config, self.ranks, self.device, self.outputs, self.signals = config, ranks, device, outputs, signals
        self.scale, self.sampler, self.validation = model_config.scale, inputs.sampler, inputs.validation
        self.precision = precision.resolve(config.opt_level, config.amp_dtype, device)
        by_apex = self.precision.scaled and config.amp_backend == "apex"
        if by_apex:
            ranks.on_rank0(check_apex, device)

        devices.enable_autotuning(device)
        self.model = initial_model(model_config, config.seed, inputs.weights)
        self.total_steps = min(config.max_steps or math.inf, config.num_epochs * self.sampler.steps)
        state = ranks.on_rank0(self._find_checkpoint)
        self.mode = ranks.on_rank0(self._choose_mode, state)
        devices.use_mode(device, self.mode)
        self.model.to(device, memory_format=devices.memory_format(device))
        self.precision.apply(self.model)
        self.average = copy.deepcopy(self.model) if config.ema else None
        self.optimizer = devices.adam(
            self.model.parameters(), device, config.lr, config.weight_decay, ranks.world == 1 and not by_apex, by_apex
        )
        self.progress = RunState()
        metrics_bytes, rows = self._resume(state)
        self.rows = ranks.on_rank0(self._choose_rows, rows)
        for model in filter(None, (self.model, self.average)):
            model.rdb = self.rows["training"]
        if self.progress.loss_scale is None:
            self.progress.loss_scale = self._loss_scale()

        settings = device, self.progress.loss_scale, config.clip_grad, self.progress.skips_in_a_row
        self.update = (
            ApexOptimizerStep(self.model, self.optimizer, *settings)
            if by_apex
            else make_optimizer_step(self.optimizer, *settings)
        )
        replica = DistributedDataParallel(self.model, **devices.ddp_options(device)) if ranks.world > 1 else self.model
        self.step = TrainStep(replica, self.optimizer, self.update, device, ranks.world)
        self.read_back = torch.zeros(
            _FLUSH_STEPS, 3, device=device
        )  # loss share, skip flag and loss scale of the steps since the last flush
        self.unread: list[dict] = []
        self.feed = PrefetchLoader(
            self.sampler, device, config.data_mode, config.num_workers, self.progress.step, self.total_steps
        )
        self.waited = 0.0  # of feed.waited, what is in the progress
        self.flushed = self.saved = time.monotonic()
        self.news = ""
        if ranks.is_rank0:
            self.writer = CheckpointWriter()
            self.log = MetricsLog(outputs, metrics_bytes, self.progress.step)
        self._introduce()

    def run(self) -> None:
        p = self.progress
        try:
            with Bar("step", self.total_steps, p.step, quiet=not self.ranks.is_rank0) as self.bar, self.feed:
                while p.step < self.total_steps or p.ended != p.step:
                    self._epoch()
        except Stopped as stopped:
            self._close()
            if self.ranks.is_rank0:
                print(f"{stopped}: saved at step {p.step}; go on with --resume auto")
            raise
        except Exception:
            self._close()  # a checkpoint on its way is written
            raise
        self._close()
        if p.skipped == p.step and self.ranks.is_rank0:
            raise Failure(
                "no step had finite gradients, so nothing was learnt; give a smaller --loss-scale-value or --lr"
            )
        if self.ranks.is_rank0:
            self._conclude()

    def _epoch(self) -> None:
        p = self.progress
        self.speed = ThroughputMeter(self.device, p.epoch_speed)
        for _ in range(min(self.sampler.steps - p.position, self.total_steps - p.step)):
            batch = next(self.feed)
            self.speed.start_step()
            self._step(batch)
            self.speed.end_step(batch.total)
            p.step += 1
            p.position += 1
            self._attend()
        self._flush()
        self._end_epoch()

    def _step(self, batch: Batch) -> None:
        rate = learning_rate(self.config, self.progress.epoch, self.progress.step, self.total_steps)
        devices.set_learning_rate(self.optimizer, rate, self.device)
        # This rank's share of the mean over all ranks' patches.
        weight = torch.full((), 1 / (batch.total * batch.hr[0].numel()) if batch.count else 0.0, device=self.device)
        share, skipped = self.step(batch.lr, batch.hr, weight, usual=batch.total == self.sampler.global_batch)
        if self.average:
            decay = min(
                self.config.ema, (1 + self.progress.step) / (10 + self.progress.step)
            )  # forgets the initial weights
            with torch.no_grad():
                devices.foreach("lerp", list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.read_back[len(self.unread)] = torch.stack([share, skipped, self.update.scale])
        self.unread.append({"event": "step", "step": self.progress.step + 1, "epoch": self.progress.epoch, "lr": rate})

    def _attend(self) -> None:
        """Between two steps: agree with the other ranks whether to stop, to save, to read the losses back."""
        now = time.monotonic()
        first = self.ranks.is_rank0
        stop, save, flush = self.ranks.all_max(
            signal.SIGTERM if self.ranks.agent_died() else max(self.signals, default=0),
            first and now - self.saved >= self.config.checkpoint_every and not self.writer.busy,
            (first and now - self.flushed >= _FLUSH_SECONDS) or len(self.unread) == _FLUSH_STEPS,
        )
        if stop or save or flush:
            self._flush()
        # A streak of skipped steps may be the end of a run that went wrong: nothing may push out the good checkpoints.
        if first and (stop or (save and not self.progress.skips_in_a_row)):
            self._save()
        if stop:
            raise Stopped(stop)
        self.bar.advance(self.news)

    def _flush(self) -> None:
        """Read the losses of the last steps, log them, and give the run up when none of its steps counts any more."""
        self.flushed = time.monotonic()
        self.progress.waited += self.feed.waited - self.waited
        self.waited = self.feed.waited
        if not self.unread:
            return
        rows = self.read_back[: len(self.unread)].cpu().double()
        losses = self.ranks.all_sum(rows[:, 0].contiguous()).tolist()
        p = self.progress
        for record, loss, (_, skip, scale) in zip(self.unread, losses, rows.tolist(), strict=True):
            p.skips_in_a_row = p.skips_in_a_row + 1 if skip else 0
            if skip:
                p.skipped += 1
                record["skipped"] = True
            else:
                p.loss_sum += loss
                p.loss_steps += 1
            if self.ranks.is_rank0:
                self.log.write({**record, "loss": loss})
            halved = scale != p.loss_scale
            if p.skips_in_a_row == MAX_SKIPS or (
                halved and not math.isfinite(loss)
            ):  # no scale mends a loss that is not finite
                self._give_up(record["step"], loss)
            if halved:
                p.loss_scale, p.skips_in_a_row = scale, 0
                self._say_halved(record["step"])
        self.speed.synchronize()  # costs nothing here: the device has just been waited for
        p.epoch_speed = self.speed.totals
        self.news = self._news(losses[-1], self.unread[-1]["lr"])
        self.unread.clear()

    def _say_halved(self, step: int) -> None:
        if self.ranks.is_rank0:
            self.bar.say(
                f"step {step}: the gradients of {HALVE_AFTER} steps in a row overflowed; the loss scale is halved to {self.progress.loss_scale:.10g}"
            )
            self.log.write({"event": "loss_scale", "step": step, "loss_scale": self.progress.loss_scale})

    def _give_up(self, step: int, loss: float) -> None:
        if not self.ranks.is_rank0:
            raise SystemExit(1)  # the first rank speaks for all
        cause = "the loss itself is not finite" if not math.isfinite(loss) else f"the loss is {loss:.4g}"
        good = step - self.progress.skips_in_a_row
        raise Failure(
            f"steps {good + 1} to {step} had gradients that are not finite and were skipped; {cause}. The weights are those "
            f"of step {good}; go on from the last checkpoint with --resume auto and a smaller --lr or --clip-grad 1"
        )

    def _end_epoch(self) -> None:
        p, first = self.progress, self.ranks.is_rank0
        over = p.step >= self.total_steps
        images, seconds, window = self.speed.measured()
        p.run_speed = [a + b for a, b in zip(p.run_speed, (images, seconds, window), strict=True)]
        p.waited = self.ranks.all_max(int(1e3 * p.waited))[0] / 1e3  # of the rank that waited longest
        record = {
            "event": "epoch",
            "step": p.step,
            "epoch": p.epoch,
            "loss": p.loss_sum / p.loss_steps if p.loss_steps else None,
            "skipped": p.skipped,
            "fps_end_to_end": per_second(images, seconds),
            "fps_seed_window": per_second(images, window),
            "gflops_end_to_end": per_second(images, seconds) * self.flop / 1e9,
            "data_wait_s": p.waited,
        }
        if first:
            self.bar.say(f"epoch:{p.epoch} FPS: {record['fps_seed_window']:.3f}")
            note = "" if self.speed.totals[1][0] else f" (all steps counted: there were no more than {WARM_UP})"
            loss = f"loss {record['loss']:.5f}" if p.loss_steps else "no step counted"
            rate = f"{record['fps_end_to_end']:.4g} img/s end-to-end ({record['gflops_end_to_end']:.0f} GFLOP/s)"
            speeds = (
                f"{rate}, {record['fps_seed_window']:.4g} in the seed window{note}, waited {p.waited:.2f} s for data"
            )
            self.bar.say(
                f"epoch {p.epoch}: {loss}, {speeds}" + (f", {p.skipped} steps skipped so far" if p.skipped else "")
            )
        if self.validation and (over or (p.epoch + 1) % self.config.eval_every == 0):
            psnr, compatible = self._validate()
            record |= {"psnr_y": psnr, "psnr_y_compat": compatible}
            if first:
                self.bar.say(
                    f"epoch {p.epoch}: PSNR-Y {psnr:.2f} dB canonical, {compatible:.2f} dB reference-compatible"
                )
            if compatible > p.best_psnr:
                p.best_epoch, p.best_psnr, p.best_psnr_canonical = p.epoch, compatible, psnr
                if first:
                    self.writer.put(self.outputs / "best.pth", host_copy((self.average or self.model).state_dict()))
        if first:
            self.log.write({**record, "seconds": self._seconds()})
        if p.position >= self.sampler.steps:
            p.epoch, p.position = p.epoch + 1, 0
        p.loss_sum, p.loss_steps, p.waited, p.epoch_speed, p.ended = 0.0, 0, 0.0, None, p.step
        if first and over:
            self._save()

    def _validate(self) -> tuple[float, float]:
        """Mean PSNR (canonical, reference-compatible) of the validation images, in float32, shared out over the ranks."""
        model = self.average or self.model
        model.eval()
        model.compute_dtype, model.output_dtype, model.rdb = None, None, self.rows["validation"]
        values = torch.zeros(len(self.validation), 2, dtype=torch.float64)
        for i in range(self.ranks.rank, len(self.validation), self.ranks.world):
            pair = self.validation[i]
            with devices.exact_float32(self.device):
                prediction = predict(model, pair.lr)
            values[i, 0] = metrics.psnr_y(prediction, pair.hr, self.scale)
            values[i, 1] = metrics.psnr_y_compat(prediction, pair.hr, self.scale)
        self.precision.apply(model)
        model.rdb = self.rows["training"]
        model.train()
        psnr, compatible = self.ranks.all_sum(values).mean(dim=0).tolist()
        return psnr, compatible

    def _save(self) -> None:
        """Hand a checkpoint of this very step, and its weights as last.pth, to the writer."""
        self.saved = time.monotonic()
        state = host_copy(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.state_dict() if self.average else None,
                "step": self.progress.step,
                "progress": {**dataclasses.asdict(self.progress), "seconds": self._seconds()},
                "metrics_bytes": self.log.synced_size(),
                "settings": self._settings(),
                "recipe": self._recipe(),
                "rows": self.rows,
                "mode": self.mode,
            }
        )
        self.writer.put(checkpoint_path(self.outputs, self.progress.step), state, prune=True)
        self.writer.put(self.outputs / "last.pth", state["average"] or state["model"])

    def _loss_scale(self) -> float:
        """The scale to begin with, as float32 holds it."""
        asked = self.config.loss_scale
        if not self.precision.scaled:
            return 1.0
        return torch.tensor(
            self.ranks.on_rank0(self._calibrate) if asked == "auto" else asked, dtype=torch.float32
        ).item()

    def _calibrate(self) -> float:
        """On the first rank: the scale that `auto` stands for, and why."""
        choice = loss_scale.resolve(
            self.model, self.precision, lambda: loss_scale.sample_batches(self.sampler, self.device, self.progress.step)
        )
        print("\n".join(choice.lines))
        return choice.scale

    @property
    def _case(self) -> Case:
        """A step's block."""
        c = self.config
        return Case.of(
            self.model.config, (c.batch_size, 3, c.patch_size, c.patch_size), self.device, self.precision.compute, True
        )

    def _choose_mode(self, state: dict | None) -> str:
        """On the first rank: the device's mode, a checkpoint's or else the one that `rdn-fast tune` has found the fastest."""
        if state is None:
            return fastest_mode(self._case)
        before = state["mode"]
        if before and before not in devices.modes(self.device):
            print(
                f"note: the steps before were computed in mode {before}, which {self.device} does not have: the same but for rounding"
            )
            return ""
        return before

    def _choose_rows(self, before: dict[str, str]) -> dict[str, str]:
        """On the first rank: the block's implementations for steps and validation. `auto` keeps to those of a checkpoint."""
        c, model, edge = self.config, self.model.config, self.config.patch_size
        picture = self.validation[0].lr.shape[:2] if self.validation else (edge, edge)
        rows = {}
        for use, case in (
            ("training", self._case),
            ("validation", Case.of(model, (1, 3, *picture), self.device, torch.float32, False)),
        ):
            here = [row.name for row in able(case.device, case.dtype, case.training)]
            name = c.rdb if use == "training" or c.rdb in here else "auto"
            rows[use] = resolve_impl(before[use] if name == "auto" and before.get(use) in here else name, case)
            if rows[use] != before.get(use, rows[use]):
                print(f"note: --rdb for {use} was {before[use]}, now {rows[use]}: the same but for rounding")
        return rows

    def _resume(self, state: dict | None) -> tuple[int, dict[str, str]]:
        """Take up a checkpoint if there is one; returns how many bytes of metrics.jsonl belong to it, and its block implementations."""
        if state is None:
            return 0, {}
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.load_state_dict(state["average"])
        saved = state["optimizer"]
        for slots in saved["state"].values():
            slots["step"] = int(slots["step"])  # every Adam takes that
        # Another device's Adam may have saved it: how steps are made is for ours to say.
        saved["param_groups"] = [
            group | {"params": old["params"]}
            for group, old in zip(self.optimizer.param_groups, saved["param_groups"], strict=True)
        ]
        self.optimizer.load_state_dict(saved)
        for parameter, slots in self.optimizer.state.items():
            for key, value in slots.items():
                if (
                    isinstance(value, torch.Tensor) and value.shape == parameter.shape
                ):  # in the parameter's memory format again
                    slots[key] = torch.empty_like(parameter).copy_(value)
        self.progress = RunState(**state["progress"])
        if self._recipe().get("loss_scale") != state["recipe"].get("loss_scale"):
            self.progress.loss_scale, self.progress.skips_in_a_row = None, 0
        return state["metrics_bytes"], state.get("rows", {})

    def _find_checkpoint(self) -> dict | None:
        """On the first rank: the state to go on from, checked against the settings, with the outputs folder ready for it."""

        def say(line: str) -> None:
            print(line, flush=True)

        resume = self.config.resume
        state = load_checkpoint(resume, self.outputs, say) if resume is not None else None
        if state is None:
            set_aside(self.outputs, say)
            return None
        if changes := _changes(state["settings"], self._settings()):
            raise UserError(f"--resume {resume}: a resume needs the settings of the checkpoint, but {changes}")
        if state["step"] > self.total_steps:
            raise UserError(
                f"--resume {resume}: the checkpoint is at step {state['step']}, behind the {self.total_steps} steps asked for; give more"
            )
        if resume != "auto":
            ours = Path(resume).resolve().parent == (self.outputs / "checkpoints").resolve()
            set_aside(self.outputs, say, after=state["step"] if ours else None)
            state["metrics_bytes"] *= ours
        say(f"resumed at step {state['step']}, epoch {state['progress']['epoch']}")
        if changes := _changes(state["recipe"], self._recipe()):
            say(f"note: {changes}: not the run that it was")
        return state

    def _settings(self) -> dict:
        """What a resume cannot change."""
        c = self.config
        return {
            **dataclasses.asdict(self.model.config),
            "patch_size": c.patch_size,
            "global_batch": self.sampler.global_batch,
            "seed": c.seed,
            "patches_per_epoch": len(self.sampler),
            "drop_last": c.drop_last,
            "precision": str(self.precision),
            "ema": c.ema,
        }

    def _recipe(self) -> dict:
        """What a resume may change, and then is no longer exact."""
        c = self.config
        schedule = {"lr": c.lr, "lr_schedule": c.lr_schedule, "lr_step": c.lr_step, "lr_gamma": c.lr_gamma}
        if c.lr_schedule == "cosine":
            schedule["total_steps"] = self.total_steps
        scaling = {"loss_scale": c.loss_scale, "amp_backend": c.amp_backend} if self.precision.scaled else {}
        return {**schedule, "weight_decay": c.weight_decay, "clip_grad": c.clip_grad, **scaling}

    @property
    def flop(self) -> int:
        """Floating-point operations to train on one patch: forward, and twice that backward."""
        return 3 * 2 * self.model.config.macs(self.config.patch_size, self.config.patch_size)

    def _seconds(self) -> float:
        return self.progress.seconds + time.monotonic() - self.began

    def _news(self, loss: float, rate: float) -> str:
        images, seconds, window = self.speed.measured()
        speeds = f"{per_second(images, seconds):.4g} img/s ({per_second(images, window):.4g} seed)  " if seconds else ""
        return (
            f"epoch {self.progress.epoch}  loss {loss:.4f}  {speeds}waited {self.progress.waited:.2f} s  lr {rate:.1e}"
        )

    def _introduce(self) -> None:
        if not self.ranks.is_rank0:
            return
        c, world = self.config, self.ranks.world
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        rdb = self.rows["training"] + (f", mode {self.mode}" if self.mode else "")
        scale = f", loss scale {self.progress.loss_scale:.10g} ({c.amp_backend})" if self.precision.scaled else ""
        print(
            f"rdn-fast {__version__}: x{self.scale} RDN, {millions:.2f} M parameters, {self.precision}{scale}, rdb {rdb}, torch {torch.__version__}"
        )
        print(
            f"on {devices.describe(self.device)}: {world} x {c.batch_size} patches of {c.patch_size}x{c.patch_size} per step"
        )
        if self.precision.level != "O0" and not devices.low_precision_pays(self.device):
            print("note: on this CPU --opt-level O0 (float32) is faster")
        print(f"{self.sampler.pairs.path}: {self.sampler.patches} patches per epoch, {self.sampler.steps} steps")
        print(self.feed.about)
        if self.sampler.left_out:
            print(
                f"left out {len(self.sampler.left_out)} images smaller than the patch: {', '.join(self.sampler.left_out)}"
            )
        if not self.validation:
            print("no --eval-file: nothing is validated and no best.pth is written")
        event = "resume" if self.progress.step else "start"
        record = {
            "event": event,
            "step": self.progress.step,
            "device": devices.describe(self.device),
            "world": world,
            "torch": torch.__version__,
        }
        files = {
            name: path and path.name
            for name, path in zip(("train_file", "eval_file"), c.files(self.scale), strict=True)
        }
        self.log.write(
            {
                **record,
                "date": datetime.now().isoformat(timespec="seconds"),
                "rdn_fast": __version__,
                **self._settings(),
                "recipe": self._recipe(),
                "steps": self.total_steps,
                **files,
                "loss_scale": self.progress.loss_scale,
                "rdb": self.rows,
                "mode": self.mode,
            }
        )

    def _conclude(self) -> None:
        p = self.progress
        images, seconds, window = p.run_speed
        if p.best_epoch is not None:
            print(f"best epoch: {p.best_epoch}, psnr: {p.best_psnr:.2f}")
            print(
                f"canonical PSNR-Y of that epoch: {p.best_psnr_canonical:.2f} dB (the line above is reference-compatible)"
            )
        print(
            f"whole run: {per_second(images, seconds):.3f} img/s end-to-end, {p.skipped} of {p.step} steps skipped, {clock(self._seconds())}"
        )
        print(
            f"weights: {self.outputs / 'last.pth'}"
            + (f", {self.outputs / 'best.pth'}" if p.best_epoch is not None else "")
        )
        print(f"Final Performance images/sec : {per_second(images, window):.3f}")
        print(
            f"Final Train Accuracy : {p.best_psnr:.2f}"
            if p.best_epoch is not None
            else "Final Train Accuracy : not validated"
        )
        print(f"E2E Training Duration sec : {self._seconds():.1f}", flush=True)

    def _close(self) -> None:
        if self.ranks.is_rank0:
            self.log.close()
            self.writer.close()


def predict(model: RDN, lr: np.ndarray) -> np.ndarray:
    """lr uint8 [h, w, 3] -> float32 [scale*h, scale*w, 3] in 0..255, neither rounded nor clipped; computed in float32."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        x = to_float(torch.from_numpy(np.array(lr))[None], device)  # a copy: torch wants writable memory
        return model(x)[0].permute(1, 2, 0).mul(255).cpu().numpy()


def learning_rate(config: TrainConfig, epoch: int, step: int, total_steps: int) -> float:
    """The rate of step `step` (from 0) in `epoch`."""
    if config.lr_schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * step / total_steps))
    return config.lr * config.lr_gamma ** (epoch // config.lr_step)


@contextmanager
def _signals(ranks: Ranks):
    """Collects SIGTERM and SIGINT in the list that it yields; a second Ctrl-C acts as usual, but not on a rank, which gets each twice."""
    received: list[int] = []

    def handler(number, _):
        received.append(number)
        if number == signal.SIGINT and not ranks.launched:
            signal.signal(number, before[number])

    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _changes(old: dict, new: dict) -> str:
    """What differs, as words; empty when nothing does."""
    return "; ".join(f"{key} was {value}, now {new.get(key)}" for key, value in old.items() if new.get(key) != value)
