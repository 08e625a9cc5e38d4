"""ModelConfig: the shape of a model."""

from __future__ import annotations

from dataclasses import dataclass

from rdn_fast.config.fields import check_choices, check_positive, flag
from rdn_fast.errors import UserError

SCALES = (2, 3, 4, 8)
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

    scale: int = flag(2, "up-scaling factor: 2, 3, 4 or 8")
    num_features: int = flag(64, "channels outside the blocks [G0]")
    growth_rate: int = flag(64, "channels that each dense layer adds [G]")
    num_blocks: int = flag(16, "residual dense blocks [D]")
    num_layers: int = flag(8, "dense layers per block [C]")
    upsample_channels: int | None = flag(
        None, "channels after up-sampling (default: num-features; EDSR-PyTorch's config A: 32)"
    )
    tail: str = flag(
        "shuffle",
        "up-sampling; shuffle: the paper's, in steps of 2 or 3; single: in one step; espcn: idealo's, all on LR",
        choices=("shuffle", "single", "espcn"),
    )
    mean_shift: bool = flag(False, "subtract DIV2K's mean colour from the input, as yulunzhang's code does")

    def __post_init__(self):
        check_choices(self)
        if self.scale not in SCALES:
            raise UserError(f"--scale {self.scale}: RDN is defined for 2, 3, 4 and 8")
        for name in ("num_features", "growth_rate", "num_blocks", "num_layers"):
            check_positive(self, name)
        if self.upsample_channels is not None:
            check_positive(self, "upsample_channels")
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
