"""Presets by name, and the configs that a preset and given values make."""

from __future__ import annotations

import dataclasses

from rdn_fast.config.model import ModelConfig
from rdn_fast.config.training import TrainConfig
from rdn_fast.errors import UserError

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
    # The models that come with the package (tools/small_model.py): 1.46 M parameters at x2, 1 to 3 h on 2 CPU cores.
    "small": _SMALL
    | _COSINE
    | {"patch_size": 32, "batch_size": 8, "max_steps": 30_000}
    | {"optimizer": "muon", "lr": 1e-3, "ema": 0.999, "eval_every": 5},
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
