"""Figures that others have published, each with its source and its convention, to stand beside measured ones."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """PSNR-Y in dB and SSIM-Y (None: not stated to four digits) of a model, by scale and set, as its source states."""

    model: str
    parameters: dict[int, float]  # millions, by scale
    source: str
    canonical: bool  # else reference-compatible; docs/evaluation.md has both conventions
    notes: dict[int, str]  # what differs at a scale
    figures: dict[int, dict[str, tuple[float, float | None]]]


_RDN = {2: 22.12, 3: 22.31, 4: 22.27}  # arithmetic: D 16, C 8, G 64, G0 64

# torchSR rounds, takes Y with the canonical weights, crops the scale and averages PSNR over images; its LR is MATLAB's.
_TORCHSR = "torchSR's README, at 5051f34"
EDSR_BASELINE = Published(
    "EDSR-baseline", {2: 1.37, 3: 1.55, 4: 1.52}, _TORCHSR, True, {},
    {
        2: {"Set5": (37.98, 0.9604), "Set14": (33.57, 0.9174), "B100": (32.15, 0.8993), "Urban100": (31.98, 0.9271)},
        3: {"Set5": (34.37, 0.9270), "Set14": (30.28, 0.8414), "B100": (29.08, 0.8051), "Urban100": (28.15, None)},
        4: {"Set5": (32.09, 0.8936), "Set14": (28.58, 0.7804), "B100": (27.56, 0.7354), "Urban100": (26.03, 0.7842)},
    },
)  # fmt: skip
TORCHSR = Published(
    "RDN, torchSR", _RDN, _TORCHSR, True, {},
    {
        2: {"Set5": (38.12, 0.9609), "Set14": (33.71, 0.9182), "B100": (32.25, 0.9006), "Urban100": (32.41, 0.9310)},
        3: {"Set5": (33.98, 0.9234), "Set14": (30.07, 0.8373), "B100": (28.90, 0.8004), "Urban100": (27.49, None)},
        4: {"Set5": (32.35, 0.8968), "Set14": (28.72, 0.7846), "B100": (27.66, 0.7388), "Urban100": (26.36, 0.7946)},
    },
)  # fmt: skip
YJN870 = Published(
    "RDN, yjn870", _RDN, "yjn870/RDN-pytorch's README, at 351dcb7", False, {3: "HR resized instead of cropped"},
    {2: {"Set5": (38.18, None)}, 3: {"Set5": (34.73, None)}, 4: {"Set5": (32.40, None)}},
)  # fmt: skip
# Read where other works quote it, not in the paper itself: Manga109 at x3, and its SSIM at x2, were not found.
PAPER = Published(
    "RDN, the paper", _RDN, "arXiv:1802.08797, table 2, as quoted by others", True, {},
    {
        2: {
            "Set5": (38.24, 0.9614), "Set14": (34.01, 0.9212), "B100": (32.34, 0.9017), "Urban100": (32.89, 0.9353),
            "Manga109": (39.18, None),
        },
        3: {"Set5": (34.71, 0.9296), "Set14": (30.57, 0.8468), "B100": (29.26, 0.8093), "Urban100": (28.80, 0.8653)},
        4: {
            "Set5": (32.47, 0.8990), "Set14": (28.81, 0.7871), "B100": (27.72, 0.7419), "Urban100": (26.61, 0.8028),
            "Manga109": (31.00, 0.9151),
        },
    },
)  # fmt: skip

PUBLISHED = (EDSR_BASELINE, TORCHSR, YJN870, PAPER)
