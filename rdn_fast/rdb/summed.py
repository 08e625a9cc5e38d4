"""No concatenation: a convolution of concatenated maps is the sum of one convolution for each map.

For devices on which concatenations and slices cost more than smaller convolutions. Each convolution is rounded to x's
dtype, and the sum is accumulated in float32. Where the parts cancel, at a ReLU's kink, their rounding errors remain: in
bf16 they flip eight times as many ReLUs as a convolution of the concatenation does (measured), so bf16 is left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def rdb(x, conv_w, conv_b, fuse_w, fuse_b):
    """x: [B, G0, H, W] -> y: [B, G0, H, W]."""
    wide = torch.promote_types(x.dtype, torch.float32)
    features = [x]
    # Autograd adds the gradients of x in reverse order. Made first, the residual's, the largest, comes last, and the
    # sum of the others is rounded at its own size.
    residual = x.to(wide)

    def conv(w, b, padding):  # w: [O, channels of all features, k, k] -> [B, O, H, W], wide
        parts = w.split([f.shape[1] for f in features], dim=1)
        total = F.conv2d(features[0], parts[0], b, padding=padding).to(wide)
        for f, part in zip(features[1:], parts[1:], strict=True):
            total = total + F.conv2d(f, part, padding=padding)
        return total

    for w, b in zip(conv_w, conv_b, strict=True):
        features.append(F.relu(conv(w, b, 1)).to(x.dtype))
    return (conv(fuse_w, fuse_b, 0) + residual).to(x.dtype)
