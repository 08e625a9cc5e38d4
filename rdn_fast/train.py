"""The training loop: batches -> model -> L1 -> optimizer, on one device or, under torchrun, on several.

Everything random is a function of (seed, epoch, index), and the learning rate one of (epoch, step): a checkpoint needs no
generator or scheduler state, and a resumed run is bit for bit the uninterrupted one.
"""

from __future__ import annotations

import copy
import dataclasses
import fcntl
import math
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from rdn_fast import __version__, metrics, precision
from rdn_fast import device as devices
from rdn_fast.checkpoint import Writer, checkpoint_path, host_copy, load_checkpoint, load_weights
from rdn_fast.config import Config, TrainConfig
from rdn_fast.data.h5 import Pairs
from rdn_fast.data.loader import Batch, Loader, to_float
from rdn_fast.errors import TrainingError, UserError
from rdn_fast.evaluate import load_pairs, predict
from rdn_fast.model import RDN, load_state
from rdn_fast.progress import Bar, MetricsLog, clock
from rdn_fast.ranks import Ranks
from rdn_fast.rdb import select
from rdn_fast.speed import WARM_UP, Speed, per_second

MAX_SKIPS = 20  # consecutive steps without a finite gradient before a run is given up
_FLUSH_STEPS = 64  # losses kept on the device at most before the host reads them
_FLUSH_SECONDS = 1.0


class Stopped(Exception):
    """The run was asked to stop by signal `number`, and has saved."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@dataclasses.dataclass
class Progress:
    """Where a run is; all of it is in every checkpoint. Steps of an epoch are counted in `position`."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    skipped: int = 0
    skips_in_a_row: int = 0
    loss_sum: float = 0.0  # over the epoch's steps with finite gradients
    loss_steps: int = 0
    best_epoch: int | None = None
    best_psnr: float = -math.inf  # reference-compatible
    best_psnr_canonical: float = -math.inf
    epoch_speed: list | None = None  # speed.Speed.totals
    run_speed: list = dataclasses.field(default_factory=lambda: [0, 0.0, 0.0])
    seconds: float = 0.0
    ended: int | None = None  # the step at which the last epoch's end was done


def check(model_config: Config, config: TrainConfig) -> None:
    """What can be known before anything is started: files and their contents. Raises UserError."""
    train_file, eval_file = config.files(model_config.scale)
    Loader(Pairs(train_file, model_config.scale), model_config.scale, config.patch_size, config.batch_size, config.seed)
    if eval_file is not None:
        load_pairs(eval_file, model_config.scale)
    if config.weights_file is not None:
        load_state(RDN(model_config), load_weights(config.weights_file), config.weights_file)
    select(config.rdb, torch.device(devices.resolve(config.device)), training=True)


def train(model_config: Config, config: TrainConfig) -> None:
    """Train as `config` says; returns when the run is complete.

    Raises Stopped (SIGTERM or SIGINT, after saving), UserError and TrainingError.
    """
    ranks = Ranks()
    try:
        device = devices.pick(config.device, config.device_id, ranks.local_rank)
        ranks.connect(device)
        outputs = Path(config.outputs_dir)
        with _locked(outputs, ranks), _signals() as signals:
            _Run(model_config, config, ranks, device, outputs, signals).run()
    except OSError as error:
        raise TrainingError(f"{error.filename or config.outputs_dir}: {error.strerror or error}; mend it, then go on with --resume auto") from None
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"out of memory ({str(error).split('.')[0]}): give a smaller --batch-size; go on with --resume auto") from None
    except RuntimeError as error:
        if not ranks.lost(error):
            raise
        raise TrainingError("lost contact with another rank, whose own message says why; go on with --resume auto") from None
    finally:
        ranks.close()


class _Run:
    def __init__(self, model_config: Config, config: TrainConfig, ranks: Ranks, device: torch.device, outputs: Path, signals: list[int]):
        self.began = time.monotonic()
        self.config, self.ranks, self.device, self.outputs, self.signals = config, ranks, device, outputs, signals
        self.scale = model_config.scale
        train_file, eval_file = config.files(self.scale)
        pairs = Pairs(train_file, self.scale)
        self.loader = Loader(pairs, self.scale, config.patch_size, config.batch_size, config.seed, ranks.rank, ranks.world, config.num_workers)
        self.validation = load_pairs(eval_file, self.scale) if eval_file is not None else []
        self.precision = precision.choose(config.opt_level, config.amp_dtype, config.loss_scale, device)

        torch.manual_seed(config.seed)
        self.model = RDN(model_config, select(config.rdb, device, training=True).name)
        if config.weights_file is not None:
            load_state(self.model, load_weights(config.weights_file), config.weights_file)
        self.model.to(device, memory_format=devices.memory_format(device))
        self.precision.apply(self.model)
        self.average = copy.deepcopy(self.model) if config.ema else None
        self.optimizer = devices.adam(self.model.parameters(), device, config.lr, config.weight_decay)
        self.progress = Progress()
        metrics_bytes = self._resume()

        self.replica = DistributedDataParallel(self.model, gradient_as_bucket_view=True) if ranks.world > 1 else self.model
        self.total_steps = min(config.max_steps or math.inf, config.num_epochs * self.loader.steps)
        self.read_back = torch.zeros(_FLUSH_STEPS, 2, device=device)  # loss share and skip flag of the steps since the last flush
        self.unread: list[dict] = []
        self.flushed = self.saved = time.monotonic()
        self.due = False
        self.news = ""
        if ranks.first:
            self.writer = Writer()
            self.log = MetricsLog(outputs, metrics_bytes, self.progress.step)
        self._introduce(train_file, model_config)

    def run(self) -> None:
        p = self.progress
        try:
            with Bar("step", self.total_steps, p.step, quiet=not self.ranks.first) as self.bar:
                while p.step < self.total_steps or p.ended != p.step:
                    self._epoch()
        except Stopped as stopped:
            self._close()
            if self.ranks.first:
                print(f"{stopped}: saved at step {p.step}; go on with --resume auto")
            raise
        self._close()
        if self.ranks.first:
            self._conclude()

    def _epoch(self) -> None:
        p = self.progress
        self.speed = Speed(self.device, p.epoch_speed)
        batches = self.loader.epoch(p.epoch, p.position, p.position + self.total_steps - p.step)
        try:
            for batch in batches:
                self.speed.arrived()
                self._step(batch)
                self.speed.stepped(batch.total)
                p.step += 1
                p.position += 1
                self._attend()
        finally:
            batches.close()
        self._flush()
        self._end_epoch()

    def _step(self, batch: Batch) -> None:
        lr, hr = to_float(batch.lr, self.device), to_float(batch.hr, self.device)  # [b, 3, p, p], [b, 3, s*p, s*p]
        rate = learning_rate(self.config, self.progress.epoch, self.progress.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        weight = 1 / (batch.total * hr[0].numel()) if batch.count else 0.0
        # This rank's share of the mean over all ranks' patches; DDP divides gradients by the number of ranks.
        share = F.l1_loss(self.replica(lr).float(), hr, reduction="sum") * weight
        (share * (self.ranks.world * self.precision.loss_scale)).backward()
        skipped = precision.step(self.optimizer, self.precision.loss_scale, self.config.clip_grad)
        if self.average:
            decay = min(self.config.ema, (1 + self.progress.step) / (10 + self.progress.step))  # forgets the initial weights
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.read_back[len(self.unread)] = torch.stack([share.detach(), skipped])
        self.unread.append({"event": "step", "step": self.progress.step + 1, "epoch": self.progress.epoch, "lr": rate})

    def _attend(self) -> None:
        """Between two steps: agree with the other ranks whether to stop, to save, to read the losses back."""
        now = time.monotonic()
        first = self.ranks.first
        stop, save, flush = self.ranks.agree(
            signal.SIGTERM if self.ranks.orphaned() else max(self.signals, default=0),
            first and (self.due or now - self.saved >= self.config.checkpoint_every) and not self.writer.busy,
            (first and now - self.flushed >= _FLUSH_SECONDS) or len(self.unread) == _FLUSH_STEPS,
        )
        if stop or save or flush:
            self._flush()
        if first and (stop or save):
            self._save()
        if stop:
            raise Stopped(stop)
        self.bar.advance(self.news)

    def _flush(self) -> None:
        """Read the losses of the last steps, log them, and give the run up when none of its steps counts any more."""
        self.flushed = time.monotonic()
        if not self.unread:
            return
        rows = self.read_back[: len(self.unread)].cpu().double()
        losses, skips = self.ranks.total(rows[:, 0].contiguous()).tolist(), rows[:, 1].tolist()
        p = self.progress
        for record, loss, skip in zip(self.unread, losses, skips, strict=True):
            p.skips_in_a_row = p.skips_in_a_row + 1 if skip else 0
            if skip:
                p.skipped += 1
                record["skipped"] = True
            else:
                p.loss_sum += loss
                p.loss_steps += 1
            if self.ranks.first:
                self.log.write({**record, "loss": loss})
            if p.skips_in_a_row == MAX_SKIPS:
                self._give_up(record["step"], loss)
        self.speed.settle()  # costs nothing here: the device has just been waited for
        p.epoch_speed = self.speed.totals
        self.news = self._news(losses[-1], self.unread[-1]["lr"])
        self.unread.clear()

    def _give_up(self, step: int, loss: float) -> None:
        self._close()
        if not self.ranks.first:
            raise SystemExit(1)  # the first rank speaks for all
        cause = "the loss itself is not finite" if not math.isfinite(loss) else f"the loss is {loss:.4g}"
        remedy = "a smaller --lr or --clip-grad 1" if self.precision.level == "O0" else "a smaller --loss-scale-value or --lr, or --clip-grad 1"
        raise TrainingError(
            f"steps {step - MAX_SKIPS + 1} to {step} had gradients that are not finite and were skipped; {cause}. The weights are those "
            f"of step {step - MAX_SKIPS}; go on from the last checkpoint with --resume auto and {remedy}"
        )

    def _end_epoch(self) -> None:
        p, first = self.progress, self.ranks.first
        over = p.step >= self.total_steps
        images, seconds, window = self.speed.counted()
        p.run_speed = [a + b for a, b in zip(p.run_speed, (images, seconds, window), strict=True)]
        record = {
            "event": "epoch", "step": p.step, "epoch": p.epoch, "loss": p.loss_sum / p.loss_steps if p.loss_steps else None, "skipped": p.skipped,
            "fps_end_to_end": per_second(images, seconds), "fps_seed_window": per_second(images, window),
        }  # fmt: skip
        if first:
            self.bar.say(f"epoch:{p.epoch} FPS: {record['fps_seed_window']:.3f}")
            note = "" if self.speed.totals[1][0] else f" (all steps counted: there were no more than {WARM_UP})"
            loss = f"loss {record['loss']:.5f}" if p.loss_steps else "no step counted"
            speeds = f"{record['fps_end_to_end']:.1f} img/s end-to-end, {record['fps_seed_window']:.1f} in the seed window{note}"
            self.bar.say(f"epoch {p.epoch}: {loss}, {speeds}" + (f", {p.skipped} steps skipped so far" if p.skipped else ""))
        if self.validation and (over or (p.epoch + 1) % self.config.eval_every == 0):
            psnr, compatible = self._validate()
            record |= {"psnr_y": psnr, "psnr_y_compat": compatible}
            if first:
                self.bar.say(f"epoch {p.epoch}: PSNR-Y {psnr:.2f} dB canonical, {compatible:.2f} dB reference-compatible")
            if compatible > p.best_psnr:
                p.best_epoch, p.best_psnr, p.best_psnr_canonical = p.epoch, compatible, psnr
                if first:
                    self.writer.put(self.outputs / "best.pth", self._weights())
        if first:
            self.log.write(record)
        if p.position >= self.loader.steps:
            p.epoch, p.position = p.epoch + 1, 0
        p.loss_sum, p.loss_steps, p.epoch_speed, p.ended = 0.0, 0, None, p.step
        if first and not over and self.writer.busy:
            self.due = True  # a disk slower than the epochs must not stop the device
        elif first:
            self._save()
            self.writer.put(self.outputs / "last.pth", self._weights())

    def _validate(self) -> tuple[float, float]:
        """Mean PSNR (canonical, reference-compatible) of the validation images, in float32, shared out over the ranks."""
        model = self.average if self.average else self.model
        model.eval()
        model.compute_dtype = model.output_dtype = None
        values = torch.zeros(len(self.validation), 2, dtype=torch.float64)
        for i in range(self.ranks.rank, len(self.validation), self.ranks.world):
            pair = self.validation[i]
            prediction = predict(model, pair.lr)
            values[i, 0] = metrics.psnr_y(prediction, pair.hr, self.scale)
            values[i, 1] = metrics.psnr_y_compat(prediction, pair.hr, self.scale)
        self.precision.apply(model)
        model.train()
        psnr, compatible = self.ranks.total(values).mean(dim=0).tolist()
        return psnr, compatible

    def _save(self) -> None:
        """Hand a checkpoint of this very step to the writer."""
        self.saved, self.due = time.monotonic(), False
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "step": self.progress.step,
            "progress": {**dataclasses.asdict(self.progress), "seconds": self._seconds()},
            "metrics_bytes": self.log.size(),
            "settings": self._settings(),
        }
        self.writer.put(checkpoint_path(self.outputs, self.progress.step), host_copy(state), prune=True)

    def _resume(self) -> int:
        """Take up a checkpoint if asked to; returns how many bytes of metrics.jsonl belong to it."""
        say = (lambda line: print(line, flush=True)) if self.ranks.first else (lambda line: None)
        state = None
        if self.config.resume is not None:
            state = self.ranks.on_first(load_checkpoint, self.config.resume, self.outputs, say)
        if state is None:
            if self.ranks.first:
                _set_aside(self.outputs, say)
            return 0
        changed = [f"{key} was {old}, now {self._settings().get(key)}" for key, old in state["settings"].items() if self._settings().get(key) != old]
        if changed:
            raise UserError(f"--resume: an exact resume needs the settings of the checkpoint, but {'; '.join(changed)}")
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, slots in self.optimizer.state.items():
            for key, value in slots.items():
                if value.shape == parameter.shape:  # in the parameter's memory format again
                    slots[key] = torch.empty_like(parameter).copy_(value)
        self.progress = Progress(**state["progress"])
        say(f"resumed at step {self.progress.step}, epoch {self.progress.epoch}")
        return state["metrics_bytes"]

    def _settings(self) -> dict:
        """What must be the same for a resume to be exact."""
        c = self.config
        return {
            **dataclasses.asdict(self.model.config), "patch_size": c.patch_size, "global_batch": self.loader.global_batch, "seed": c.seed,
            "patches_per_epoch": len(self.loader), "precision": str(self.precision), "rdb": self.model.rdb, "ema": c.ema,
        }  # fmt: skip

    def _weights(self) -> dict[str, torch.Tensor]:
        return host_copy((self.average if self.average else self.model).state_dict())

    def _seconds(self) -> float:
        return self.progress.seconds + time.monotonic() - self.began

    def _news(self, loss: float, rate: float) -> str:
        images, seconds, window = self.speed.counted()
        speeds = f"{per_second(images, seconds):.1f} img/s ({per_second(images, window):.1f} seed window)" if seconds else ""
        return f"epoch {self.progress.epoch}  loss {loss:.5f}  lr {rate:.2e}  {speeds}"

    def _introduce(self, train_file: Path, model_config: Config) -> None:
        if not self.ranks.first:
            return
        c, world = self.config, self.ranks.world
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        print(f"rdn-fast {__version__}: x{self.scale} RDN, {millions:.2f} M parameters, {self.precision}, rdb {self.model.rdb}, torch {torch.__version__}")
        print(f"on {devices.describe(self.device)}: {world} x {c.batch_size} patches of {c.patch_size}x{c.patch_size} per step")
        if self.precision.level != "O0" and not devices.has_low_precision(self.device):
            print(f"note: this CPU has no {str(self.precision.compute).removeprefix('torch.')} instructions; O0 will be many times faster")
        print(f"{train_file}: {len(self.loader)} patches per epoch, {self.loader.steps} steps")
        if self.loader.left_out:
            print(f"left out {len(self.loader.left_out)} images smaller than the patch: {', '.join(self.loader.left_out)}")
        if not self.validation:
            print("no --eval-file: nothing is validated and no best.pth is written")
        event = "resume" if self.progress.step else "start"
        record = {"event": event, "step": self.progress.step, "device": devices.describe(self.device), "world": world, "torch": torch.__version__}
        self.log.write({**record, "rdn_fast": __version__, **self._settings()})

    def _conclude(self) -> None:
        p = self.progress
        images, seconds, window = p.run_speed
        if p.best_epoch is not None:
            print(f"best epoch: {p.best_epoch}, psnr: {p.best_psnr:.2f}")
            print(f"canonical PSNR-Y of that epoch: {p.best_psnr_canonical:.2f} dB (the line above is reference-compatible)")
        print(f"whole run: {per_second(images, seconds):.3f} img/s end-to-end, {p.skipped} of {p.step} steps skipped, {clock(self._seconds())}")
        print(f"weights: {self.outputs / 'last.pth'}" + (f", {self.outputs / 'best.pth'}" if p.best_epoch is not None else ""))
        print(f"Final Performance images/sec : {per_second(images, window):.3f}")
        print(f"Final Train Accuracy : {p.best_psnr:.2f}" if p.best_epoch is not None else "Final Train Accuracy : not validated")
        print(f"E2E Training Duration sec : {self._seconds():.1f}", flush=True)

    def _close(self) -> None:
        if self.ranks.first:
            self.log.close()
            self.writer.close()


def learning_rate(config: TrainConfig, epoch: int, step: int, total_steps: int) -> float:
    """The rate of step `step` (from 0) in `epoch`."""
    if config.lr_schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * step / total_steps))
    return config.lr * config.lr_gamma ** (epoch // config.lr_step)


@contextmanager
def _signals():
    """Collects SIGTERM and SIGINT in the list that it yields; the second signal of a kind acts as usual."""
    received: list[int] = []

    def handler(number, _):
        received.append(number)
        signal.signal(number, before[number])

    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _locked(outputs: Path, ranks: Ranks):
    """Make the outputs folder ours: two runs that write to one folder would destroy each other's checkpoints."""
    lock = ranks.on_first(_lock, outputs)
    try:
        yield
    finally:
        if ranks.first:
            os.close(lock)


def _lock(outputs: Path, patience: float = 20.0) -> int:
    """An open, exclusively locked file of the folder; a killed run's last rank may take a step to notice."""
    try:
        outputs.mkdir(parents=True, exist_ok=True)
        lock = os.open(outputs / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"--outputs-dir {outputs}: cannot be written ({error.strerror}); choose another folder") from None
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError:
            if time.monotonic() > deadline:
                os.close(lock)
                raise UserError(f"--outputs-dir {outputs}: another run is writing there; wait for it or choose another folder") from None
            time.sleep(0.2)


def _set_aside(outputs: Path, say) -> None:
    """Move an earlier run's files out of the way of a new one; nothing is ever overwritten."""
    earlier = [path for path in (outputs / name for name in ("checkpoints", "metrics.jsonl", "best.pth", "last.pth", "tensorboard")) if path.exists()]
    if earlier:
        aside = outputs / time.strftime("earlier-%Y%m%d-%H%M%S")
        aside.mkdir()
        for path in earlier:
            path.rename(aside / path.name)
        say(f"{outputs} held an earlier run; it is now in {aside}")
    (outputs / "checkpoints").mkdir(exist_ok=True)
