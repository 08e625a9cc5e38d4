"""The Triton kernels of triton_planes that compute the gradients of weights and biases; it defines planes and tiles.

Sums over pixels are split among programs, and the order of summation is fixed: no program waits for another or adds to
what another has written. `K` is always the number of channels of a plane, a power of two.
"""

import triton
import triton.language as tl


@triton.jit
def _weight_block(
    d,
    f,
    partial,
    row,
    column,
    rows,
    X,
    S,
    pixels,
    span,
    size,
    H: tl.constexpr,
    W: tl.constexpr,
    K: tl.constexpr,
    TAPS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    DEPTH: tl.constexpr,
    CACHE: tl.constexpr,
):
    """Compute block (row, column) of weight_gradient: M / K planes of d times N / K pairs (source plane, tap) of f.

    TAPS 9: d holds the layers' planes, the last layer first; layer i reads the first X + i source planes.
    TAPS 1: d holds the planes of the block's output's gradient; the fusion reads all S source planes.
    """
    m = row * M + tl.arange(0, M)
    n = column * N + tl.arange(0, N)
    row = m // K
    source = n // K // TAPS
    tap = n // K % TAPS if TAPS == 9 else 4  # a fusion's only tap is the middle one
    dh = tap // 3 - 1
    dw = tap % 3 - 1
    d_at = d + row.to(tl.int64) * pixels * K + m % K
    f_at = f + source.to(tl.int64) * pixels * K + (dh * W + dw) * K + n % K
    begin = tl.program_id(1) * span
    z = tl.zeros((M, N), tl.float32)
    for k in range(0, span, DEPTH):
        pixel = begin + k + tl.arange(0, DEPTH)
        inside = pixel < pixels
        h = pixel // W % H
        w = pixel % W
        a = tl.load(d_at[None, :] + pixel[:, None] * K, mask=inside[:, None] & (row < rows)[None, :], other=0.0)
        seen = (h[:, None] + dh >= 0) & (h[:, None] + dh < H) & (w[:, None] + dw >= 0) & (w[:, None] + dw < W)
        b = tl.load(
            f_at[None, :] + pixel[:, None] * K,
            mask=inside[:, None] & (source < S)[None, :] & seen,
            other=0.0,
            cache_modifier=CACHE,
        )
        z = tl.dot(a.T, b, z, input_precision="ieee")
    if TAPS == 9:
        reader = rows - 1 - row
        reads = X + reader
        first = (reader * X + reader * (reader - 1) // 2) * 9
    else:
        reads = tl.zeros_like(row) + S
        first = row * S
    tile = first[:, None] + (source * TAPS + n // K % TAPS)[None, :]
    at = partial + tl.program_id(1).to(tl.int64) * size + tile * (K * K) + (m % K)[:, None] * K + (n % K)[None, :]
    tl.store(at, z, mask=(row < rows)[:, None] & (source[None, :] < reads[:, None]))


@triton.jit
def weight_gradient(
    dy,
    d,
    f,
    partial,
    programs,
    of_layers,
    layers,
    X,
    S,
    first_fusion,
    pixels,
    span,
    size,
    H: tl.constexpr,
    W: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    FUSION_M: tl.constexpr,
    FUSION_N: tl.constexpr,
    DEPTH: tl.constexpr,
    CACHE: tl.constexpr,
):
    """Compute the gradients of all tiles over `span` pixels per split: partial [splits, size] float32.

    Grid: (programs, splits). A grouped GEMM with split-K over pixels: each program computes one block of a product of
    gradient planes with pairs (source plane, tap) of f [S, pixels, K].
    dy: [X, pixels, K], of the block's output. d: [layers, pixels, K], of the layers, the last layer first.
    programs: [programs, 2] int32, the row and column of each program's block: first `of_layers` with blocks [M, N] of
    the layers' gradients, then the fusion's, whose one tap and X planes would leave most of such a block empty.
    """
    row = tl.load(programs + tl.program_id(0) * 2)
    column = tl.load(programs + tl.program_id(0) * 2 + 1)
    if tl.program_id(0) < of_layers:
        _weight_block(d, f, partial, row, column, layers, X, S, pixels, span, size, H, W, K, 9, M, N, DEPTH, CACHE)
    else:
        partial += first_fusion * K * K
        _weight_block(
            dy, f, partial, row, column, X, X, S, pixels, span, size, H, W, K, 1, FUSION_M, FUSION_N, DEPTH, CACHE
        )


@triton.jit(do_not_specialize=["splits", "layers", "programs", "blocks"])
def reduce(
    partial,
    place,
    sums,
    of_output,
    gradients,
    weights,
    splits,
    size,
    layers,
    programs,
    blocks,
    G: tl.constexpr,
    G0: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    TERMS: tl.constexpr,
):
    """Sum what the programs of other kernels have computed: gradients [weights + layers * G + G0], any float dtype.

    Grid: weights / P programs, then one for each layer's biases and each plane of the fusion's.
    partial: [splits, size] float32, of weight_gradient. place: [weights] int32, the index in `size` of each weight.
    sums: [layers, programs, K] float32, of data_gradient. of_output: [X, blocks, K] float32, of to_planes.
    """
    bias = tl.program_id(0) - tl.cdiv(weights, P)
    if bias < 0:
        i = tl.program_id(0) * P + tl.arange(0, P)
        at = partial + tl.load(place + i, mask=i < weights, other=0)
        z = tl.zeros((P,), tl.float32)
        for _ in range(0, splits):
            z += tl.load(at, mask=i < weights, other=0.0)
            at += size
        tl.store(gradients + i, z.to(gradients.dtype.element_ty), mask=i < weights)
    else:
        c = tl.arange(0, K)
        q = bias - layers  # plane of the output, negative for a layer
        row = sums + bias * programs * K
        if q >= 0:
            row = of_output + q * blocks * K
        terms = tl.where(q < 0, programs, blocks)
        total = tl.zeros((TERMS, K), tl.float32)
        for first in range(0, terms, TERMS):
            term = first + tl.arange(0, TERMS)
            total += tl.load(row + term[:, None] * K + c[None, :], mask=(term < terms)[:, None], other=0.0)
        to = gradients + weights + tl.where(q < 0, bias * G, layers * G + q * K) + c
        tl.store(to, tl.sum(total, 0).to(gradients.dtype.element_ty), mask=c < tl.where(q < 0, G, G0 - q * K))
