"""What npu_conv's kernels compute, in plain torch and float64: the definition that compiled kernels must meet.

A kernel takes here what it takes on a card (npu_conv_kernels); its tensors may have any dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rdn_fast.rdb.npu_conv_kernels import HEAD, STEP


def run(kind: str, k: int, width: int, *arguments: torch.Tensor | int) -> None:
    """Compute what the kernel of a kind (npu_conv_kernels.KINDS) writes, for planes with rows of `width` pixels."""
    if kind == "weight_gradient":
        _weight_gradient(k, width, *arguments)
    else:
        _sums(kind, k, width, *arguments)


def _sums(kind, k, width, planes, weights, term, gate, y, sources, items, tiles, blocks, height, plane, _chunk_weights):
    if not items:
        return
    batch, side = tiles // blocks, 1 if kind == "fusion" else 3
    assert planes[0].numel() == plane

    def images(of):  # [planes, pixels, K] -> [planes, B, H, width, K]
        lines = of[:, HEAD * width : (HEAD + batch * (height + 1)) * width]
        return lines.view(-1, batch, height + 1, width, k)[:, :, :height]

    x = images(planes)[:sources].permute(1, 0, 4, 2, 3).flatten(1, 2).double()
    for chunk in range(items // tiles):
        w = weights[chunk, :sources].view(sources, side, side, k, k).permute(3, 0, 4, 1, 2).flatten(1, 2).double()
        total = F.conv2d(x, w, padding=side // 2).permute(0, 2, 3, 1)
        total = total + (term[chunk, 0] if kind in ("layer", "fusion") else images(term)[chunk])
        if kind == "layer":
            total = total.relu()
        elif kind == "fusion":
            total = total + images(gate)[chunk]
        elif kind == "gradient":
            total = torch.where(images(gate)[chunk] > 0, total, 0)
        images(y)[chunk] = total


def _weight_gradient(k, width, planes, d, parts, items, splits, pairs, steps, plane, split_size):
    assert (planes[0].numel(), parts[0].numel()) == (plane, split_size)
    pixels = torch.arange(HEAD * width, HEAD * width + steps * STEP)
    x = planes[: 2 * pairs, pixels].double()
    parts.zero_()  # all in the first split
    for ky in range(3):
        for kx in range(3):
            opposite = d[: parts.shape[1], pixels - (ky - 1) * width - (kx - 1)].double()
            parts[0, :, : len(x), ky, kx] = torch.einsum("spi,tpo->tsio", x, opposite)
