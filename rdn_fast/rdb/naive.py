"""The residual dense block as in the paper (arXiv:1802.08797, eq. 5 to 8): the oracle of all other impls.

    f_0 = x
    f_j = relu(conv3x3_j([f_0, ..., f_{j-1}]))      j = 1..C
    y   = x + conv1x1([f_0, ..., f_C])              local feature fusion and local residual

[..] is the concatenation over channels.
"""

import torch
import torch.nn.functional as F


def rdb(x, conv_w, conv_b, fuse_w, fuse_b):
    """x: [B, G0, H, W] -> y: [B, G0, H, W], any floating dtype."""
    features = x  # [B, G0 + j*G, H, W]
    for w, b in zip(conv_w, conv_b, strict=True):
        features = torch.cat([features, F.relu(F.conv2d(features, w, b, padding=1))], dim=1)
    return x + F.conv2d(features, fuse_w, fuse_b)
