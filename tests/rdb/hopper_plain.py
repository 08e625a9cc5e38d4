"""What hopper's kernels compute, in plain torch: checks planes, packing and gradients where nothing is compiled."""

import torch
import torch.nn.functional as F

from rdn_fast.devices.cuda_kernels import Boxes


def launch(name: str, grid: tuple[int, int], memory: int, *arguments) -> None:
    """Stand for hopper.launch. Sums that a kernel writes in parts are one part, and zeros."""
    for written, value in expected(name, *arguments):
        written.zero_()
        (written[0] if written.dim() == 2 else written).copy_(value)


def expected(name: str, *arguments) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return what a launch writes: pairs of a view of the memory and its value. A matrix's rows sum to the value."""
    return _weights(*arguments) if name.endswith("_weights") else _convolution(name, *arguments)


def _plane(boxes: Boxes, number: int, images: int) -> torch.Tensor:
    """Return a plane as a view [N, 8, 8, H, W]."""
    groups, height, _ = boxes.tensor.shape
    planes = boxes.tensor.view(groups // (8 * images), images, 8, height, -1, 8)
    return planes[number].permute(0, 1, 4, 2, 3)


def _convolution(name, steps, other, out, weights, bias, sums, ones, count, other_plane, result, outputs, *rest):
    images = rest[0]
    z = torch.zeros_like(_plane(out, 0, images), dtype=torch.float32).flatten(1, 2)
    for plane in range(count // 2):
        taps = 1 if 2 * plane < ones else 9
        tile, weights = weights[: taps * 4096], weights[taps * 4096 :]
        w = tile.view(2, taps, 4, 64, 8).permute(3, 0, 2, 4, 1).reshape(64, 64, int(taps**0.5), -1).float()
        z += F.conv2d(_plane(steps, plane, images).flatten(1, 2).float(), w, padding=taps // 9)
    if name != "gradient":
        z += F.pad(bias.flatten()[:outputs], (0, 64 - outputs))[:, None, None]
    f = _plane(other, other_plane, images).flatten(1, 2)
    z = {"layer": z.relu(), "residual": z + f, "gradient": z.masked_fill(f <= 0, 0)}[name].to(f.dtype)
    written = [(_plane(out, result, images), z.unflatten(1, (8, 8)))]
    return written + [(sums, z.float().sum((0, 2, 3)))] * (name == "gradient")


def _weights(gradients, edged, pairs, partial, images, *rest):
    taps = partial.shape[1] // (len(pairs) * 4096)
    tiles = []
    for d, x in pairs.tolist():
        operands = _plane(edged, x, images).flatten(1, 2).float(), _plane(gradients, d, images).flatten(1, 2).float()
        side = int(taps**0.5)
        w = torch.nn.grad.conv2d_weight(operands[0], (64, 64, side, side), operands[1], padding=taps // 9)
        tiles.append(w.permute(2, 3, 0, 1).flatten())
    return [(partial, torch.cat(tiles))]
