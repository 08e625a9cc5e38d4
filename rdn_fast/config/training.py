"""TrainConfig: a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rdn_fast.config.fields import check_choices, check_positive, dashed, flag
from rdn_fast.errors import UserError, why_no_folder

DEGRADATION_HELP = (
    "of LR images; bi: bicubic; bd: 7x7 Gaussian blur, then every third pixel (x3); dn: bicubic and noise of level 30; "
    "jpeg:LOW-HIGH: bicubic and JPEG of a quality between these"
)


def _number_or_auto(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise UserError(f"--loss-scale-value {text}: give a number, or auto") from None


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Patch sizes are in LR pixels, batch sizes are per device, epochs count from 0.

    Raises UserError for a value that is out of range. Whether files exist is not checked here.
    """

    data_path: str | None = flag(None, "folder with DIV2K_x{scale}.h5 and Set5_x{scale}.h5 (instead of the two files)")
    train_file: str | None = flag(None, "training h5, made by `rdn-fast prepare`")
    train_dir: str | None = flag(
        None, "folder of HR images to train on; an h5 file is made of it, once, beside it or in the user's cache folder"
    )
    train_lr_dir: str | None = flag(
        None, "folder of LR pictures that belong to those of train-dir by name, instead of making LR images"
    )
    eval_file: str | None = flag(None, "validation h5 or folder of HR images; without it there is no validation")
    eval_lr_dir: str | None = flag(
        None,
        "folder of LR pictures of the folder eval-file; without it those that lie with its pictures under customary "
        "names are used, unless bicubic or degradation makes LR images",
    )
    bicubic: str | None = flag(
        None,
        "whose bicubic makes LR images of folders; matlab: imresize of a uint8 image, as benchmarks were made "
        "(default: pillow)",
        choices=("pillow", "matlab"),
    )
    degradation: str | None = flag(None, f"{DEGRADATION_HELP} (default: bi)")
    outputs_dir: str = flag("outputs/train", "where weights, checkpoints and metrics.jsonl go")
    weights_file: str | None = flag(
        None,
        "start from these weights (fine-tuning); without preset and shape, the model is theirs; of weights of another "
        "scale or tail everything before up-sampling is taken",
        "pth-path",
    )
    resume: str | None = flag(
        None, "`auto`: go on exactly from the newest checkpoint of outputs-dir; or a checkpoint file"
    )

    patch_size: int = flag(32, "LR patch edge; the HR patch is scale times as large")
    batch_size: int = flag(16, "patches that a device computes at a time; without accumulate: per step and device")
    accumulate: int = flag(1, "batches of which a step sums the gradients: the same as one batch of them all")
    num_epochs: int = flag(800, "epochs; in each, one patch is cut from every training image", "epochs")
    max_steps: int | None = flag(None, "end the run after so many steps, where num-epochs does not end it before")
    optimizer: str = flag(
        "adam",
        "adam, or muon: orthogonalized momentum for all convolutions but the first and the last, at Adam's rates; good "
        "after far fewer steps",
        choices=("adam", "muon"),
    )
    lr: float = flag(1e-4, "learning rate at the start")
    lr_schedule: str = flag(
        "step",
        "step: times lr-gamma every lr-step epochs; multistep: times lr-gamma at each of lr-milestones; cosine: to 0 "
        "at the end",
        choices=("step", "multistep", "cosine"),
    )
    lr_step: int | None = flag(
        None, "epochs between the drops of --lr-schedule step (default: 0.8 times num-epochs, as in yjn870's code)"
    )
    lr_milestones: str | None = flag(None, "epochs of --lr-schedule multistep, as 200,400,600")
    lr_gamma: float = flag(0.1, "factor of each drop")
    lr_warmup: int = flag(0, "steps over which the learning rate rises to --lr in a line, before its schedule's drops")
    loss: str = flag(
        "l1",
        "mean over pixels and channels of l1: |SR - HR|; mse: its square; charbonnier: sqrt((SR - HR)^2 + 1e-6)",
        choices=("l1", "mse", "charbonnier"),
    )
    weight_decay: float = flag(0.0, "L2 penalty added to the gradient, as in torch.optim.Adam")
    clip_grad: float | None = flag(None, "largest norm of the whole gradient (default: no clipping)")
    ema: float | None = flag(
        None, "decay of an exponential moving average of the weights, say 0.999; it is what is validated and saved"
    )
    seed: int = flag(123, "decides initial weights, order and augmentation")
    num_workers: int = flag(2, "threads that cut patches ahead of the step; 0: cut them in the training thread")
    data_mode: str = flag(
        "auto",
        "mmap: patches are cut out of the mapped file by threads; resident: the whole file is kept in the device's "
        "memory; h5py: read through h5py, for chunked or compressed files; auto: resident where it fits well and pays, "
        "else mmap, and says why",
        choices=("auto", "mmap", "resident", "h5py"),
    )
    drop_last: bool = flag(False, "leave out an epoch's last batch when it is not full")

    opt_level: str = flag(
        "auto",
        "O0: float32; O1: low precision, last convolution float32; O2: low precision throughout, float32 master "
        "weights; auto: O1 on npu and cuda; on a CPU the faster of O0 and O1, timed once (O0 where bf16 is emulated)",
        "apex-opt-level",
        choices=("auto", "O0", "O1", "O2"),
    )
    amp_dtype: str = flag(
        "auto", "low precision of O1 and O2; auto: fp16 on npu and cuda, bf16 on cpu", choices=("auto", "fp16", "bf16")
    )
    amp_backend: str = flag(
        "torch",
        "what scales the loss in O1 and O2: torch, or apex where its apex.amp is installed; the levels mean the same "
        "with both",
        choices=("torch", "apex"),
    )
    loss_scale: float | str = flag(
        1024.0,
        "static loss scale of O1 and O2, or auto: calibrated once on the first batches (fp16). A step whose gradients "
        "overflow is skipped and counted; after 10 of them in a row the scale is halved, and that is said",
        "loss-scale-value",
        parse=_number_or_auto,
    )
    all_reduce: str = flag(
        "fp32",
        "what several ranks send to average their gradients; fp16: half the bytes, rounded (the loss scale lifts small "
        "gradients into its range)",
        choices=("fp32", "fp16"),
    )
    rdb: str = flag(
        "auto",
        "implementation of the residual dense block; auto: the fastest here, timed once (`rdn-fast tune` shows the "
        "table)",
    )

    device: str = flag("auto", "auto, cpu, cuda[:i] or npu[:i]")
    device_id: int | None = flag(None, "index of the accelerator, as in --device npu:INDEX")
    eval_every: int = flag(1, "epochs between validations; the last epoch is always validated")
    checkpoint_every: float = flag(60.0, "seconds between checkpoints, besides the one at the end")
    keep_every: int | None = flag(None, "keep the weights after every so many epochs, too, as epoch_N.pth")
    early_stop: int | None = flag(None, "end the run after so many validations in a row without a better PSNR")

    def __post_init__(self):
        check_choices(self)
        for name in ("patch_size", "batch_size", "accumulate", "num_epochs", "lr", "lr_gamma"):
            check_positive(self, name)
        for name in ("eval_every", "checkpoint_every"):
            check_positive(self, name)
        if self.loss_scale != "auto" and not 2.0**-126 <= self.loss_scale <= 2.0**127:
            raise UserError(
                f"--loss-scale-value {self.loss_scale}: must be a positive number that float32 holds, or auto"
            )
        for name in ("max_steps", "clip_grad", "lr_step", "keep_every", "early_stop"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        for name in ("weight_decay", "num_workers", "seed", "lr_warmup"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"--{dashed(name)} {getattr(self, name)}: must not be negative, and finite")
        if self.accumulate > 1 and self.amp_backend == "apex":
            raise UserError(f"--accumulate {self.accumulate}: not with --amp-backend apex; leave one of them out")
        if self.optimizer != "adam" and self.amp_backend == "apex":
            raise UserError(f"--optimizer {self.optimizer}: not with --amp-backend apex; give --optimizer adam")
        if self.seed >= 2**63:
            raise UserError(f"--seed {self.seed}: must be below 2^63")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"--ema {self.ema}: give a decay between 0 and 1, for example 0.999")

        if (self.lr_milestones is None) == (self.lr_schedule == "multistep"):
            both = "go together: --lr-schedule multistep --lr-milestones 200,400"
            raise UserError(f"--lr-schedule {self.lr_schedule}: multistep and --lr-milestones {both}")
        if not self.milestones == sorted({*self.milestones}):
            raise UserError(f"--lr-milestones {self.lr_milestones}: give each epoch once, in rising order")

    @property
    def milestones(self) -> list[int]:
        """Return the epochs of lr_milestones. Raises UserError where one is no positive number."""
        words = (self.lr_milestones or "").replace(",", " ").split()
        if self.lr_milestones is not None and not (words and all(word.isdecimal() and int(word) for word in words)):
            raise UserError(f"--lr-milestones {self.lr_milestones}: give epochs with commas between, as 200,400,600")
        return [int(word) for word in words]

    @property
    def epochs_between_drops(self) -> int:
        """Return lr_step, or what it is by default."""
        return self.lr_step or max(1, int(0.8 * self.num_epochs))

    def files(self, scale: int) -> tuple[Path, Path | None]:
        """Return the training h5, or the folder train_dir, and the validation set or None, from data_path or the flags.

        Raises UserError when there is no training data, or too much.
        """
        folder = Path(self.data_path) if self.data_path else None
        if folder and (flaw := why_no_folder(folder)):
            remedy = "--train-file takes h5 files" if flaw == "is a file" else "give that of DIV2K_x2.h5 and Set5_x2.h5"
            raise UserError(f"--data-path {folder}: {flaw}; {remedy}")
        if self.train_file and self.train_dir:
            raise UserError(f"--train-file {self.train_file} and --train-dir {self.train_dir}: give one of them")
        if self.train_lr_dir and not self.train_dir:
            raise UserError(
                f"--train-lr-dir {self.train_lr_dir}: belongs to HR pictures of --train-dir; give that, or make the "
                "file of --train-file by prepare --lr-dir"
            )
        if self.eval_lr_dir and not self.eval_file:
            raise UserError(f"--eval-lr-dir {self.eval_lr_dir}: belongs to HR pictures of --eval-file; give that, too")
        given = self.train_file or self.train_dir
        train = Path(given) if given else folder and folder / f"DIV2K_x{scale}.h5"
        evaluation = Path(self.eval_file) if self.eval_file else folder and folder / f"Set5_x{scale}.h5"
        if train is None:
            raise UserError(
                "no training data: give --train-file FILE.h5, --train-dir FOLDER_OF_HR_IMAGES, "
                "or --data-path with DIV2K_x2.h5 and Set5_x2.h5 in it"
            )
        return train, evaluation
