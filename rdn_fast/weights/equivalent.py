"""Turn what other projects compute differently into our model's parameters, without changing any result."""

from __future__ import annotations

import re

import torch


def with_biases(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dict with a bias of zeros for each convolution of a block that has none."""
    missing = {
        bias: torch.zeros(weight.shape[:1], dtype=weight.dtype)
        for key, weight in state.items()
        if re.fullmatch(r"rdbs\..*\.weight", key) and (bias := key.removesuffix("weight") + "bias") not in state
    }
    return state | missing


def from_bgr(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dict of the model that takes and gives RGB where this one takes and gives BGR."""
    flipped = {"sfe1.weight": 1, "output.weight": 0, "output.bias": 0}
    return state | {key: state[key].flip(axis) for key, axis in flipped.items() if key in state and state[key].ndim}


def merge_idealo(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dict with one convolution on LR, before a pixel shuffle, for idealo's last one, SR, on HR.

    SR sees the 3*s*s channels of upscale.4 made larger by repeating pixels, or, if it has 3 input channels, by
    TensorFlow's depth_to_space. Each of its taps falls on an LR pixel at most one away, and what lies outside the HR
    picture lies outside the LR one: zeros in both. A state dict with other shapes is returned as it is.
    """
    sr, before = state.get("output.weight"), state.get("upscale.4.bias")
    if sr is None or before is None or "output.bias" not in state or before.ndim != 1:
        return state
    channels = len(before)
    scale = round((channels / 3) ** 0.5)
    if scale < 2 or 3 * scale**2 != channels or sr.shape not in ((3, channels, 3, 3), (3, 3, 3, 3)):
        return state
    merged = torch.zeros(3, scale, scale, channels, 3, 3, dtype=torch.float64)  # channel, place in the LR pixel, input
    for y in range(scale):
        for x in range(scale):
            for i in range(3):
                for j in range(3):
                    (down, row), (right, column) = divmod(y + i - 1, scale), divmod(x + j - 1, scale)
                    first = 0 if sr.shape[1] == channels else 3 * (row * scale + column)  # depth_to_space's order
                    inputs = slice(first, first + sr.shape[1])
                    merged[:, y, x, inputs, 1 + down, 1 + right] += sr[:, :, i, j].double()
    weight = merged.reshape(channels, channels, 3, 3).to(sr.dtype)
    return state | {"output.weight": weight, "output.bias": state["output.bias"].repeat_interleave(scale**2)}
