"""rdn_fast: train, evaluate and use Residual Dense Networks for super-resolution, fast."""

import importlib

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
