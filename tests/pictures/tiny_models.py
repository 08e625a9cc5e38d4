"""Small models with random weights, their result in one piece, and a record of what they were called with."""

import numpy as np
import torch

from rdn_fast.config import ModelConfig
from rdn_fast.model import RDN

SMALL = 1e-5  # difference of float results in 0..1
LACKING = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate some")


def model(scale=2, rdb="sliced", **options) -> RDN:
    """Return a model with random weights, the same in every run, whose receptive radius is 9 pixels.

    Its last convolution is scaled so that results spread over 0..1 instead of being nearly black.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(scale)
        tiny = {"num_features": 6, "growth_rate": 4, "num_blocks": 2, "num_layers": 2}
        made = RDN(ModelConfig(scale, **tiny | options), rdb).eval()
    with torch.no_grad():
        made.output.weight.mul_(8)
        made.output.bias.add_(0.5)
    return made


MODELS = {scale: model(scale) for scale in (2, 3, 4)}


def whole(made: RDN, image: np.ndarray) -> np.ndarray:
    """Return the model's result without Upscaler: float32 [s*H, s*W, 3] in 0..1."""
    x = torch.from_numpy(image.astype(np.float32) / np.iinfo(image.dtype).max).permute(2, 0, 1)[None]
    with torch.no_grad():
        return made(x)[0].permute(1, 2, 0).numpy()


def rounded(y: np.ndarray, dtype=np.uint8) -> np.ndarray:
    """y: float in 0..1 -> uint8 or uint16, clipped."""
    return np.rint(np.clip(y, 0, 1) * np.float32(np.iinfo(dtype).max)).astype(dtype)


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """Return the largest difference of two stored pictures."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    return int(np.abs(a.astype(np.int64) - b).max())


class Watched:
    """Records the shapes [B, 3, h, w] and the dtypes of all calls of a model. Raises `error` where refuse(shape)."""

    def __init__(self, made: RDN, refuse=lambda shape: False, error=LACKING):
        self.shapes, self.dtypes, self._refuse, self._error = [], [], refuse, error
        made.register_forward_pre_hook(self._hear)

    def _hear(self, module, arguments) -> None:
        shape = tuple(arguments[0].shape)
        if self._refuse(shape):
            raise self._error
        self.shapes.append(shape)
        self.dtypes.append((module.compute_dtype, module.output_dtype))
