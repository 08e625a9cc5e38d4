"""RDN: shallow features, residual dense blocks, global fusion, up-sampling (Zhang et al., CVPR 2018, arXiv:1802.08797).

The model owns float32 parameters under the reference's names and shapes. The impls of rdb/ compute its blocks.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import nn

from rdn_fast import devices
from rdn_fast.config import ESPCN, ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.precision import Precision
from rdn_fast.rdb import select
from rdn_fast.rdb.autotune import resolve_impl
from rdn_fast.rdb.blocks import RDB, FrozenRDB
from rdn_fast.rdb.case import Case
from rdn_fast.tail import output_conv

_DIV2K_MEAN = (0.4488, 0.4371, 0.4040)  # RGB in 0..1; where a model with a mean shift begins


class RDN(nn.Module):
    """Residual dense network.

    Input: [B, 3, H, W], RGB in 0..1, any H and W. Output: [B, 3, scale*H, scale*W] in the same range, not clamped.
    compute_dtype: of all convolutions but the last (None: the input's dtype).
    output_dtype: of the last convolution (None: the same as the others).
    outer_dtype: of the first convolution, the sum with its result, and up-sampling (None: as compute_dtype).
    rdb: an impl of rdn_fast.rdb.IMPLS, or "auto": the fastest here, timed at the first call (rdb/autotune.py).
    window: the only LR size (H, W) that it takes; None, any, for every RDN.
    """

    window: tuple[int, int] | None = None

    def __init__(self, model_config: ModelConfig | None = None, rdb: str = "auto"):
        super().__init__()
        self.config = c = model_config or ModelConfig()
        self.rdb = rdb
        self.compute_dtype: torch.dtype | None = None
        self.output_dtype: torch.dtype | None = None
        self.outer_dtype: torch.dtype | None = None
        g0, u = c.num_features, c.tail_channels
        self.sfe1 = nn.Conv2d(3, g0, 3, padding=1)
        self.sfe2 = nn.Conv2d(g0, g0, 3, padding=1)
        self.rdbs = nn.ModuleList(RDB(g0, c.growth_rate, c.num_layers) for _ in range(c.num_blocks))
        self.gff = nn.Sequential(nn.Conv2d(c.num_blocks * g0, g0, 1), nn.Conv2d(g0, g0, 3, padding=1))
        if c.mean_shift:
            self.register_buffer("mean", torch.tensor(_DIV2K_MEAN))
        self.upscale = nn.Sequential()
        if c.tail == "espcn":
            outputs = 3 * c.scale**2
            for inputs, channels, kernel in ((g0, ESPCN[0], 5), (*ESPCN, 3)):
                self.upscale.extend((nn.Conv2d(inputs, channels, kernel, padding=kernel // 2), nn.ReLU()))
            self.upscale.append(nn.Conv2d(ESPCN[1], outputs, 3, padding=1))
            self.output = nn.Conv2d(outputs, outputs, 3, padding=1)
            return
        for i, factor in enumerate(c.shuffles):
            self.upscale.append(nn.Conv2d(u if i else g0, factor**2 * u, 3, padding=1))
            self.upscale.append(nn.PixelShuffle(factor))
        self.output = nn.Conv2d(u, 3, 3, padding=1)

    @contextmanager
    def computing(self, precision: Precision | None, rdb: str | None = None) -> Iterator[None]:
        """Within the block, compute at this precision (None: in the input's dtype) with this impl (None: no change)."""
        before = self.compute_dtype, self.output_dtype, self.outer_dtype, self.rdb
        self.compute_dtype = self.output_dtype = self.outer_dtype = None
        if precision:
            precision.apply(self)
        self.rdb = rdb or self.rdb
        try:
            yield
        finally:
            self.compute_dtype, self.output_dtype, self.outer_dtype, self.rdb = before

    def frozen(self) -> RDN:
        """Return a copy for inference alone, with the weights as they are now; later changes do not reach it.

        Its blocks' weights are packed once, not at every call: 64x64 pixels take 0.85 of the time. Its parameters and
        state dict lack those of the blocks.
        """
        twin = copy.deepcopy(self).eval().requires_grad_(False)
        twin.rdbs = nn.ModuleList(map(FrozenRDB, twin.rdbs))
        return twin

    @property
    def device(self) -> torch.device:
        return self.sfe1.weight.device

    @property
    def in_words(self) -> str:
        return describe(self.config)

    @property
    def receptive_radius(self) -> int:
        """How many LR pixels around its own place a pixel of the result depends on.

        Each 3x3 convolution adds one pixel of its own resolution: two for shallow features, C in each of D blocks, one
        of the global fusion, one before the first pixel shuffle. The last is at the output's resolution, 1/s of an LR
        pixel, and x4 and x8 have some between, 1/2 + 1/4 (+ 1/8): one LR pixel when rounded up. Tail "espcn" has all on
        LR: one of 5x5 and three of 3x3.
        """
        tail = 5 if self.config.tail == "espcn" else 2
        return self.config.num_blocks * self.config.num_layers + 3 + tail

    def bytes_per_pixel(self, dtype: torch.dtype) -> int:
        """Return an upper bound of the memory for each LR pixel of the input, computed in `dtype` without gradients.

        It counts the outputs of all blocks and their concatenation, the maps of one block twice, and those of the
        up-sampling twice in `dtype` and once in float32; of tail "espcn" the first two twice, the result's three times
        in float32. They do not all exist at one time, which leaves room for workspaces.
        """
        c = self.config
        trunk = 2 * c.num_blocks * c.num_features + 2 * (c.num_features + c.num_layers * c.growth_rate)
        tail = c.scale**2 * c.tail_channels
        if c.tail == "espcn":
            return dtype.itemsize * (trunk + 2 * sum(ESPCN)) + 4 * 3 * tail
        return dtype.itemsize * (trunk + 2 * tail) + 4 * tail

    def forward(self, x):  # x: [B, 3, H, W]
        if 0 in x.shape[2:]:
            raise ValueError(f"a picture has no pixels: {list(x.shape)}; give [B, 3, H, W]")
        compute = self.compute_dtype or x.dtype
        x = x.to(self.outer_dtype or compute)
        case = Case.of(self.config, x.shape, x.device, compute, torch.is_grad_enabled())
        impl = select(resolve_impl(self.rdb, case), case.device, case.dtype, case.training)
        if self.config.mean_shift:
            x = x - self.mean.to(x.dtype)[:, None, None]
        shallow = _conv(self.sfe1, x)  # [B, G0, H, W]
        y = _conv(self.sfe2, shallow.to(compute))
        local = []
        weights = [block.weights for block in self.rdbs if isinstance(block, RDB)]  # frozen blocks pack their own
        for block, packed in zip_longest(self.rdbs, impl.pack(weights, compute) if weights else ()):
            y = block(y, impl, packed)
            local.append(y)
        y = _conv(self.gff[1], _conv(self.gff[0], torch.cat(local, dim=1))).to(x.dtype) + shallow
        output = self.output_dtype or y.dtype
        read = y.dtype if output_conv.fits(self.output, y, output) else output  # what the last convolution reads
        for i, layer in enumerate(self.upscale, start=1):
            if isinstance(layer, nn.PixelShuffle):
                last = i == len(self.upscale)
                y = devices.pixel_shuffle(y, layer.upscale_factor, read if last else y.dtype)
            else:
                y = _conv(layer, y) if isinstance(layer, nn.Conv2d) else layer(y)
        # y: [B, U, s*H, s*W]; with tail "espcn" [B, 3*s*s, H, W]
        if read != output:
            return output_conv.output_conv(y, self.output.weight, self.output.bias)
        y = _conv(self.output, y.to(output))
        return F.pixel_shuffle(y, self.config.scale) if self.config.tail == "espcn" else y


def _conv(conv: nn.Conv2d, x):
    """Compute the convolution in x's dtype. Its float32 parameters are cast, and their gradients cast back."""
    return F.conv2d(x, conv.weight.to(x.dtype), conv.bias.to(x.dtype), padding=conv.padding)


def meta_model(model_config: ModelConfig) -> RDN:
    """Return the model on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        return RDN(model_config)


def infer_config(state: dict, name: str) -> ModelConfig:
    """Return the ModelConfig of a state dict (reference names). Raise UserError, naming `name`, if it is no RDN's."""
    for key in ("sfe1.weight", "rdbs.0.layers.0.conv.weight", "upscale.0.weight", "output.weight"):
        if key not in state or state[key].ndim != 4 or 0 in state[key].shape:
            first = ", ".join(list(state)[:3])
            reason = f"({key} is missing or no convolution's); the file's keys begin with {first}"
            raise UserError(f"{name}: these are no weights of an RDN {reason}")
    g0, (outputs, u, *_) = state["sfe1.weight"].shape[0], state["output.weight"].shape
    g = state["rdbs.0.layers.0.conv.weight"].shape[0]
    blocks = sum(key.startswith("rdbs.") and key.endswith(".lff.weight") for key in state)
    layers = sum(key.startswith("rdbs.0.layers.") and key.endswith(".conv.weight") for key in state)
    shuffled = [state[f"upscale.{i}.weight"].shape[0] for i in (0, 2, 4) if f"upscale.{i}.weight" in state]
    if state["upscale.0.weight"].shape[-1] == 5:
        tail, scale = "espcn", round((outputs / 3) ** 0.5)
    else:
        scale = math.prod(round((channels / u) ** 0.5) for channels in shuffled)
        tail = "single" if len(shuffled) == 1 and scale in (4, 8) else "shuffle"
    upsample_channels = None if tail == "espcn" or u == g0 else u
    try:
        return ModelConfig(scale, g0, g, blocks, layers, upsample_channels, tail, "mean" in state)
    except UserError as error:
        raise UserError(f"{name}: these weights describe no RDN ({error})") from None


def check_state(model_config: ModelConfig, state: dict, name: str) -> None:
    """Raise UserError with the differing keys and shapes unless `state`, from file `name`, fits the model exactly."""
    expected = meta_model(model_config).state_dict()
    problems = (
        _grouped("missing", expected.keys() - state.keys()),
        _grouped("unexpected", state.keys() - expected.keys()),
        [
            f"{key} is {list(state[key].shape)}, not {list(value.shape)}"
            for key, value in expected.items()
            if key in state and state[key].shape != value.shape
        ],
    )
    if any(problems):
        words = "; ".join(word for group in problems for word in _shortened(group))
        raise UserError(f"{name} does not fit this model ({describe(model_config)}): {words}")


def describe(model_config: ModelConfig) -> str:
    """Return the model's shape in words: RDN x2 D16 C8 G64 G0 64."""
    c = model_config
    words = [f"RDN x{c.scale} D{c.num_blocks} C{c.num_layers} G{c.growth_rate} G0 {c.num_features}"]
    if c.upsample_channels not in (None, c.num_features):
        words.append(f"{c.upsample_channels} after up-sampling")
    if c.tail != "shuffle":
        words.append(f"tail {c.tail}")
    if c.mean_shift:
        words.append("mean colour subtracted")
    return ", ".join(words)


def _shortened(words: list[str]) -> list[str]:
    return words[:6] + ([f"and {len(words) - 6} more"] if len(words) > 6 else [])


def _grouped(what: str, keys) -> list[str]:
    """Return the keys in words, all keys of a block as one."""
    counts = Counter(".".join(key.split(".")[:2]) + ".*" if key.startswith("rdbs.") else key for key in keys)
    return [f"{what} {key}" + (f" ({n} keys)" if n > 1 else "") for key, n in sorted(counts.items())]
