"""rdn_fast: train, evaluate and use Residual Dense Networks for super-resolution, fast."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers and editors, which do not see __getattr__
    from rdn_fast.config import ModelConfig, TrainConfig
    from rdn_fast.model import RDN
    from rdn_fast.pictures.upscale import upscale
    from rdn_fast.weights.convert import load_model

__all__ = ["RDN", "ModelConfig", "TrainConfig", "load_model", "upscale"]
__version__ = "0.1.0"

_HOMES = {
    "ModelConfig": "config",
    "TrainConfig": "config",
    "RDN": "model",
    "load_model": "weights.convert",
    "upscale": "pictures.upscale",
}


def __getattr__(name: str):
    # Import on first use: `rdn-fast --help` must not wait for torch.
    if name in _HOMES:
        return getattr(importlib.import_module(f"rdn_fast.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'rdn_fast' has no attribute {name!r}")
