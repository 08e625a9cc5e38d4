"""The Triton kernels of output_conv: a 3x3 convolution to three channels that reads low precision and sums in float32.

The map x is far larger than all else, so each kernel reads it from memory once. Of a tile of pixels it makes one matrix
product with all taps: column j = 3 * tap + output is the pixel's part in that output of the pixel `tap` away; columns
27 to 31 are zeros. `K`: C rounded up to a power of two, 16 at least. The order of summation is fixed.

Products are TF32's, of float32 in two parts: x in low precision is exact in TF32, and both parts of a weight are, or
of a gradient.
"""

import triton
import triton.language as tl


@triton.jit
def _taps():
    """Return columns j, which output each belongs to, and how many rows down and columns across its tap is."""
    j = tl.arange(0, 32)
    return j, j % 3, j // 9 - 1, j // 3 % 3 - 1


@triton.jit
def _parts(x):
    """Return float32 x as the sum of its leading digits, which TF32 holds, and the others."""
    high = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def _weights(weight, stride_o, stride_c, stride_h, stride_w, C: tl.constexpr, K: tl.constexpr):
    """Return weight [3, C, 3, 3] of these strides as [32, K] in two parts."""
    j, output, down, across = _taps()
    c = tl.arange(0, K)
    at = output * stride_o + (down + 1) * stride_h + (across + 1) * stride_w
    mask = (j < 27)[:, None] & (c < C)[None, :]
    return _parts(tl.load(weight + at[:, None] + c[None, :] * stride_c, mask=mask, other=0.0).to(tl.float32))


@triton.jit
def forward(
    x,
    weight,
    bias,
    y,
    H,
    W,
    across,
    down,
    stride_o,
    stride_c,
    stride_h,
    stride_w,
    C: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Compute y = bias + conv3x3(x).

    Grid: images * down * across tiles of ROWS x COLS pixels, whose edges overlap: they give their parts to others only.
    x: [N, H, W, C]. y: float32 [N, H, W, 3]. weight: [3, C, 3, 3] of these strides. bias: [3].
    """
    program = tl.program_id(0)
    p = tl.arange(0, ROWS * COLS)
    r = p // COLS
    s = p % COLS
    h = program // across % down * (ROWS - 2) + r - 1
    w = program % across * (COLS - 2) + s - 1
    inside = (h >= 0) & (h < H) & (w >= 0) & (w < W)
    at = (program // (across * down)).to(tl.int64) * H * W + h * W + w
    c = tl.arange(0, K)
    z = tl.load(x + at[:, None] * C + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
    high, low = _weights(weight, stride_o, stride_c, stride_h, stride_w, C, K)
    given = tl.dot(z, low.T, input_precision="tf32")
    given = tl.dot(z, high.T, given, input_precision="tf32")
    j, output, below, beside = _taps()
    source = p[:, None] + below[None, :] * COLS + beside[None, :]
    taken = tl.gather(given, tl.minimum(tl.maximum(source, 0), ROWS * COLS - 1), 0)
    taken = tl.where((j < 27)[None, :], taken, 0.0)
    own = inside & (r > 0) & (r < ROWS - 1) & (s > 0) & (s < COLS - 1)
    for o in tl.static_range(3):
        sums = tl.sum(tl.where((output == o)[None, :], taken, 0.0), 1)
        tl.store(y + at * 3 + o, sums + tl.load(bias + o).to(tl.float32), mask=own)


@triton.jit
def backward(
    dy,
    x,
    weight,
    dx,
    parts,
    pixels,
    H,
    W,
    dy_n,
    dy_c,
    dy_h,
    dy_w,
    stride_o,
    stride_c,
    stride_h,
    stride_w,
    C: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
):
    """Compute dx [N, H, W, C], and the gradients of weight and bias in parts, float32 [programs, 32 * K + 32].

    Grid: as many programs as there are parts; they take tiles of P of the N*H*W pixels in turn.
    dy: float32 [N, 3, H, W] of these strides. x, weight: as in `forward`.
    d [P, 32] is for each column the gradient of that output: dx is d times the weights, the weights' gradient d^T times
    x, and the bias's the sum of d in the middle tap.
    """
    j, output, down, across = _taps()
    c = tl.arange(0, K)
    w_high, w_low = _weights(weight, stride_o, stride_c, stride_h, stride_w, C, K)
    of_weight = tl.zeros((32, K), tl.float32)
    of_bias = tl.zeros((32,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(pixels, P), tl.num_programs(0)):
        p = tile * P + tl.arange(0, P)
        inside = p < pixels
        row = (p // W % H)[:, None] - down[None, :]  # of the output that reads pixel p by this tap
        column = (p % W)[:, None] - across[None, :]
        seen = (row >= 0) & (row < H) & (column >= 0) & (column < W) & inside[:, None] & (j < 27)[None, :]
        at = (p // (H * W)).to(tl.int64)[:, None] * dy_n + row * dy_h + column * dy_w + output[None, :] * dy_c
        d = tl.load(dy + at, mask=seen, other=0.0)
        high, low = _parts(d)
        near = p.to(tl.int64)[:, None] * C + c[None, :]
        mask = inside[:, None] & (c < C)[None, :]
        z = tl.load(x + near, mask=mask, other=0.0).to(tl.float32)
        of_weight = tl.dot(low.T, z, of_weight, input_precision="tf32")
        of_weight = tl.dot(high.T, z, of_weight, input_precision="tf32")
        of_x = tl.dot(low, w_high, input_precision="tf32")
        of_x = tl.dot(high, w_low, of_x, input_precision="tf32")
        of_x = tl.dot(high, w_high, of_x, input_precision="tf32")
        tl.store(dx + near, of_x.to(dx.dtype.element_ty), mask=mask)
        of_bias += tl.sum(d, 0)
    parts += tl.program_id(0) * (32 * K + 32)
    tl.store(parts + j[:, None] * K + c[None, :], of_weight)
    tl.store(parts + 32 * K + j, of_bias)
