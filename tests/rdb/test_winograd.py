"""Winograd's transformed weights."""

import math
from fractions import Fraction

import pytest
import torch

from rdn_fast.rdb import in_c, winograd

POINTS = Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2)


def test_transformed_weights_are_rounded_once(seed):
    """An error that all weights share, as that of rounded row factors, adds up over channels, pixels and blocks."""
    if reason := winograd.missing():
        pytest.skip(f"winograd {reason}")
    torch.manual_seed(seed)
    g0, g = 32, 16  # whole vectors of every width: no padding between the transformed weights
    w = [torch.randn(g, g0, 3, 3).to(memory_format=torch.channels_last)]
    shape = in_c.Shape.of(torch.empty(1, g0, 4, 4), [torch.empty(g)])
    scales = [math.prod(a - b for b in POINTS if b != a) for a in POINTS]
    rows = [[a**k / scale for k in range(3)] for a, scale in zip(POINTS, scales, strict=True)] + [[0, 0, 1]]
    transform = torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64)
    exact = (transform @ w[0].double() @ transform.T).flatten().sort().values
    for backward in (False, True):
        u = winograd.block.pack(shape, w, torch.randn(g0, g0 + g, 1, 1), backward)[: exact.numel()]
        torch.testing.assert_close(u.double().sort().values, exact, rtol=2**-24 * (1 + 1e-6), atol=0)
