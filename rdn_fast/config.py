"""ModelConfig (the shape of a model), TrainConfig (a training run), and presets of both by name.

The flags of `rdn-fast train` and `tune` are built from the fields (cli_flags.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rdn_fast.errors import UserError, why_no_folder


def _flag(default, help_text: str, *aliases: str, choices: tuple | None = None, parse: Callable | None = None):
    """Return a dataclass field with what cli_flags.py needs: help text, further flag names, choices, and a parser."""
    return field(default=default, metadata={"help": help_text, "aliases": aliases, "choices": choices, "parse": parse})


def _number_or_auto(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise UserError(f"--loss-scale-value {text}: give a number, or auto") from None


SCALES = (2, 3, 4, 8)
DEGRADATION_HELP = (
    "of LR images; bi: bicubic; bd: 7x7 Gaussian blur, then every third pixel (x3); dn: bicubic and noise of level 30; "
    "jpeg:LOW-HIGH: bicubic and JPEG of a quality between these"
)
ESPCN = (64, 32)  # channels of the tail's first two convolutions
_STEPS = {4: (2, 2), 8: (2, 2, 2)}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of an RDN, in the symbols of the paper (Zhang et al., CVPR 2018, arXiv:1802.08797).

    num_features is G0, growth_rate G, num_blocks D, num_layers C (convolutions per block, without the fusion).
    Not the paper's:
    - upsample_channels: channels after up-sampling; None for G0.
    - tail: what follows the last sum. "shuffle" (the paper's): convolution and pixel shuffle by 2 or 3, as often as the
      scale needs, then the last convolution on HR. "single": one pixel shuffle by the whole scale (lizhengwei1992's).
      "espcn" (idealo's): convolutions 5x5 to 64 channels and 3x3 to 32, ReLU after both, then 3x3 to 3*scale^2 twice,
      all on LR, and a pixel shuffle.
    - mean_shift: the input minus a colour that the weights hold (yulunzhang's).

    Raises UserError for a value that is out of range.
    """

    scale: int = _flag(2, "up-scaling factor: 2, 3, 4 or 8")
    num_features: int = _flag(64, "channels outside the blocks [G0]")
    growth_rate: int = _flag(64, "channels that each dense layer adds [G]")
    num_blocks: int = _flag(16, "residual dense blocks [D]")
    num_layers: int = _flag(8, "dense layers per block [C]")
    upsample_channels: int | None = _flag(
        None, "channels after up-sampling (default: num-features; EDSR-PyTorch's config A: 32)"
    )
    tail: str = _flag(
        "shuffle",
        "up-sampling; shuffle: the paper's, in steps of 2 or 3; single: in one step; espcn: idealo's, all on LR",
        choices=("shuffle", "single", "espcn"),
    )
    mean_shift: bool = _flag(False, "subtract DIV2K's mean colour from the input, as yulunzhang's code does")

    def __post_init__(self):
        if self.scale not in SCALES:
            raise UserError(f"--scale {self.scale}: RDN is defined for 2, 3, 4 and 8")
        for name in ("num_features", "growth_rate", "num_blocks", "num_layers"):
            _check_positive(self, name)
        if self.upsample_channels is not None:
            _check_positive(self, "upsample_channels")
            if self.tail == "espcn":
                raise UserError(f"--upsample-channels {self.upsample_channels}: --tail espcn has its own; leave it out")

    @property
    def tail_channels(self) -> int:
        """Return the number of channels after up-sampling; of the last convolution's input, but for espcn."""
        return 3 if self.tail == "espcn" else self.upsample_channels or self.num_features

    @property
    def shuffles(self) -> tuple[int, ...]:
        """Return the factors of the pixel shuffles."""
        return _STEPS.get(self.scale, (self.scale,)) if self.tail == "shuffle" else (self.scale,)

    @property
    def block_macs(self) -> int:
        """Return the multiply-accumulates of one residual dense block per LR pixel."""
        g0, g, c = self.num_features, self.growth_rate, self.num_layers
        return sum(9 * (g0 + j * g) * g for j in range(c)) + (g0 + c * g) * g0

    def macs(self, height: int, width: int) -> int:
        """Return the multiply-accumulates of a forward pass over one LR image [3, height, width] (a MAC is 2 FLOP)."""
        g0, d, u, s2 = self.num_features, self.num_blocks, self.tail_channels, self.scale**2
        trunk = 9 * 3 * g0 + 9 * g0 * g0 + d * self.block_macs + d * g0 * g0 + 9 * g0 * g0
        if self.tail == "espcn":
            (wide, narrow), outputs = ESPCN, 3 * s2
            tail = 25 * g0 * wide + 9 * (wide * narrow + narrow * outputs + outputs * outputs)
        else:
            tail, inputs, pixels = s2 * 9 * u * 3, g0, 1
            for factor in self.shuffles:
                tail += pixels * 9 * inputs * factor**2 * u
                inputs, pixels = u, pixels * factor**2  # the next up-sampling runs on as many more pixels
        return height * width * (trunk + tail)


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Patch sizes are in LR pixels, batch sizes are per device, epochs count from 0.

    Raises UserError for a value that is out of range. Whether files exist is not checked here.
    """

    data_path: str | None = _flag(None, "folder with DIV2K_x{scale}.h5 and Set5_x{scale}.h5 (instead of the two files)")
    train_file: str | None = _flag(None, "training h5, made by `rdn-fast prepare`")
    train_dir: str | None = _flag(
        None, "folder of HR images to train on; an h5 file is made of it, once, beside it or in the user's cache folder"
    )
    eval_file: str | None = _flag(None, "validation h5 or folder of HR images; without it there is no validation")
    bicubic: str = _flag(
        "pillow",
        "whose bicubic makes LR images of folders; matlab: imresize of a uint8 image, as benchmarks were made",
        choices=("pillow", "matlab"),
    )
    degradation: str = _flag("bi", DEGRADATION_HELP)
    outputs_dir: str = _flag("outputs/train", "where weights, checkpoints and metrics.jsonl go")
    weights_file: str | None = _flag(
        None, "start from these weights (fine-tuning); without preset and shape, the model is theirs", "pth-path"
    )
    resume: str | None = _flag(
        None, "`auto`: go on exactly from the newest checkpoint of outputs-dir; or a checkpoint file"
    )

    patch_size: int = _flag(32, "LR patch edge; the HR patch is scale times as large")
    batch_size: int = _flag(16, "patches per step and device")
    num_epochs: int = _flag(800, "epochs; in each, one patch is cut from every training image", "epochs")
    max_steps: int | None = _flag(None, "stop after this many steps, whatever num-epochs says")
    lr: float = _flag(1e-4, "Adam's learning rate at the start")
    lr_schedule: str = _flag(
        "step", "step: times lr-gamma every lr-step epochs; cosine: to 0 at the end", choices=("step", "cosine")
    )
    lr_step: int | None = _flag(
        None, "epochs between the drops of --lr-schedule step (default: 0.8 times num-epochs, as in yjn870's code)"
    )
    lr_gamma: float = _flag(0.1, "factor of each drop")
    weight_decay: float = _flag(0.0, "L2 penalty added to the gradient, as in torch.optim.Adam")
    clip_grad: float | None = _flag(None, "largest norm of the whole gradient (default: no clipping)")
    ema: float | None = _flag(
        None, "decay of an exponential moving average of the weights, say 0.999; it is what is validated and saved"
    )
    seed: int = _flag(123, "decides initial weights, order and augmentation")
    num_workers: int = _flag(2, "threads that cut patches ahead of the step; 0: cut them in the training thread")
    data_mode: str = _flag(
        "auto",
        "mmap: patches are cut out of the mapped file by threads; resident: the whole file is kept in the device's "
        "memory; h5py: read through h5py, for chunked or compressed files; auto: resident where it fits well and pays, "
        "else mmap, and says why",
        choices=("auto", "mmap", "resident", "h5py"),
    )
    drop_last: bool = _flag(False, "leave out an epoch's last batch when it is not full")

    opt_level: str = _flag(
        "auto",
        "O0: float32; O1: low precision, last convolution float32; O2: low precision throughout, float32 master "
        "weights; auto: O1 on npu and cuda; on a CPU the faster of O0 and O1, timed once (O0 where bf16 is emulated)",
        "apex-opt-level",
        choices=("auto", "O0", "O1", "O2"),
    )
    amp_dtype: str = _flag(
        "auto", "low precision of O1 and O2; auto: fp16 on npu and cuda, bf16 on cpu", choices=("auto", "fp16", "bf16")
    )
    amp_backend: str = _flag(
        "torch",
        "what scales the loss in O1 and O2: torch, or apex where its apex.amp is installed; the levels mean the same "
        "with both",
        choices=("torch", "apex"),
    )
    loss_scale: float | str = _flag(
        1024.0,
        "static loss scale of O1 and O2, or auto: calibrated once on the first batches (fp16). A step whose gradients "
        "overflow is skipped and counted; after 10 of them in a row the scale is halved, and that is said",
        "loss-scale-value",
        parse=_number_or_auto,
    )
    rdb: str = _flag(
        "auto",
        "implementation of the residual dense block; auto: the fastest here, timed once (`rdn-fast tune` shows the "
        "table)",
    )

    device: str = _flag("auto", "auto, cpu, cuda[:i] or npu[:i]")
    device_id: int | None = _flag(None, "index of the accelerator, as in --device npu:INDEX")
    eval_every: int = _flag(1, "epochs between validations; the last epoch is always validated")
    checkpoint_every: float = _flag(60.0, "seconds between checkpoints, besides the one at the end")

    def __post_init__(self):
        for name in ("patch_size", "batch_size", "num_epochs", "lr", "lr_gamma"):
            _check_positive(self, name)
        for name in ("eval_every", "checkpoint_every"):
            _check_positive(self, name)
        if self.loss_scale != "auto" and not 2.0**-126 <= self.loss_scale <= 2.0**127:
            raise UserError(
                f"--loss-scale-value {self.loss_scale}: must be a positive number that float32 holds, or auto"
            )
        for name in ("max_steps", "clip_grad", "lr_step"):
            if getattr(self, name) is not None:
                _check_positive(self, name)
        for name in ("weight_decay", "num_workers", "seed"):
            if not getattr(self, name) >= 0:
                raise UserError(f"--{_dashed(name)} {getattr(self, name)}: must not be negative")
        if self.seed >= 2**63:
            raise UserError(f"--seed {self.seed}: must be below 2^63")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"--ema {self.ema}: give a decay between 0 and 1, for example 0.999")

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
        given = self.train_file or self.train_dir
        train = Path(given) if given else folder and folder / f"DIV2K_x{scale}.h5"
        evaluation = Path(self.eval_file) if self.eval_file else folder and folder / f"Set5_x{scale}.h5"
        if train is None:
            raise UserError(
                "no training data: give --train-file FILE.h5, --train-dir FOLDER_OF_HR_IMAGES, "
                "or --data-path with DIV2K_x2.h5 and Set5_x2.h5 in it"
            )
        return train, evaluation


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _check_positive(config, name: str) -> None:
    value = getattr(config, name)
    if not 0 < value < float("inf"):  # NaN fails too
        raise UserError(f"--{_dashed(name)} {value}: must be greater than 0")


_RDN_B = {"num_features": 64, "growth_rate": 64, "num_blocks": 16, "num_layers": 8}
_RDN_A = {"num_features": 64, "growth_rate": 32, "num_blocks": 20, "num_layers": 6}
_SMALL = {"num_features": 48, "growth_rate": 48, "num_blocks": 6, "num_layers": 4}
_TINY = {"num_features": 32, "growth_rate": 32, "num_blocks": 4, "num_layers": 3}

_RECIPE = _RDN_B | {"batch_size": 64, "num_epochs": 800, "lr_step": 600, "seed": 123}  # of the Ascend port (test/)
_ONE_CARD = _RECIPE | {"lr": 4e-4, "loss_scale": 1024.0}
_EIGHT_CARDS = _RECIPE | {"lr": 5e-4, "loss_scale": 32.0}
_COSINE = {"lr_schedule": "cosine", "num_epochs": 100_000}  # max_steps ends the run

# Values for fields of ModelConfig and TrainConfig. Flags given beside --preset win over them.
PRESETS = {
    "rdn-b": _RDN_B,
    "rdn-a": _RDN_A,
    "rdn-a-edsr": _RDN_A | {"upsample_channels": 32},
    "train-full-1p": _ONE_CARD,
    "train-full-8p": _EIGHT_CARDS,
    "train-performance-1p": _ONE_CARD | {"num_epochs": 1},
    "train-performance-8p": _EIGHT_CARDS | {"num_epochs": 1},
    "train-finetune-1p": _RECIPE | {"num_epochs": 100, "lr": 1e-4, "loss_scale": 32.0},
    # The model that comes with the package (tools/small_model.py): 1.46 M parameters, an hour or two on two CPU cores.
    "small": _SMALL
    | _COSINE
    | {"patch_size": 24, "batch_size": 16, "max_steps": 14_000, "lr": 1e-3, "ema": 0.999, "eval_every": 20},
    # The whole model on any photographs (tools/photographs.py): as many steps as 800 epochs of 4,000 patches have.
    "full": _RECIPE
    | _COSINE
    | {"max_steps": 50_000, "lr": 4e-4, "loss_scale": "auto", "ema": 0.999, "eval_every": 10, "drop_last": True},
    # About two minutes on two CPU cores: 0.3 M parameters.
    "demo": _TINY | _COSINE | {"patch_size": 16, "batch_size": 8, "max_steps": 3000, "lr": 2e-3, "eval_every": 20},
}


def make_configs(given: dict, preset: str | None = None) -> tuple[ModelConfig, TrainConfig]:
    """Return the configs of these fields: defaults, then the preset, then `given`, whose other keys are ignored.

    Raises UserError for an unknown preset or a value that is out of range.
    """
    if preset is not None and preset not in PRESETS:
        raise UserError(f"--preset {preset}: choose one of {', '.join(PRESETS)}")
    values = {**PRESETS.get(preset, {}), **given}

    def make(cls):
        return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values})

    return make(ModelConfig), make(TrainConfig)
