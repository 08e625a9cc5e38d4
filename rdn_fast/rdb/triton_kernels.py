"""The Triton kernels of triton_planes, whose docstring defines planes and tiles.

The 3x3 convolutions are implicit GEMMs. Weights are the M operand and pixels the N operand, because wgmma then reads
the least shared memory. A vertical tap shifts the output instead of the input: each loaded tile of pixels serves the
three taps of a kernel column, each with an accumulator of its own, and the epilogue shifts the accumulators by a row
and adds them. Loading the pixels again for each of the nine taps would be bound by the L2 cache.

Descriptors (TMA) read zeros outside an image, which is the convolution's padding. All products accumulate in float32,
and the order of summation is fixed. `K` is always the number of channels of a plane, a power of two.
"""

import triton
import triton.language as tl


@triton.jit
def _corner(across, down, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return this program's image and the first row and column of its tile. Vertical neighbours overlap by two rows."""
    program = tl.program_id(0)
    return program // (across * down), program // across % down * (ROWS - 2), program % across * COLS


@triton.jit
def _pixels(top, left, H, W, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return the index in the image of each pixel of the tile, and a mask of the outputs that this program writes.

    The tile's first and last row lack a tap, so it writes them only at the image's edges.
    """
    p = tl.arange(0, ROWS * COLS)
    r = p // COLS
    h = top + r
    w = left + p % COLS
    return h * W + w, (w < W) & (h < H) & ((r > 0) | (h == 0)) & ((r < ROWS - 1) | (h == H - 1))


@triton.jit
def _shift_rows(x, DOWN: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Shift x [K, ROWS * COLS] by one row, down or up; the row that has no other to take becomes zeros.

    Shifted down, odd rows take the even ones before them, and even rows the odd ones, which among themselves shift by
    one again: half as many. wgmma keeps all rows of a column in one thread, so splitting and joining moves no data,
    where a gather would pass through shared memory.
    """
    K: tl.constexpr = x.shape[0]
    HALF: tl.constexpr = ROWS // 2
    if ROWS == 1:
        shifted = tl.zeros_like(x)
    else:
        even, odd = tl.split(x.reshape(K, HALF, 2, COLS).permute(0, 1, 3, 2))  # [K, HALF, COLS]
        if DOWN:
            odd = _shift_rows(odd.reshape(K, HALF * COLS), DOWN, HALF, COLS).reshape(K, HALF, COLS)
        else:
            even = _shift_rows(even.reshape(K, HALF * COLS), DOWN, HALF, COLS).reshape(K, HALF, COLS)
        shifted = tl.join(odd, even).permute(0, 1, 3, 2).reshape(K, ROWS * COLS)
    return shifted


@triton.jit
def _shift_and_add(above, here, below, COLS: tl.constexpr):
    """Return the sum of the three vertical taps' accumulators [K, ROWS * COLS], each shifted to its output's row."""
    ROWS: tl.constexpr = here.shape[1] // COLS
    return here + _shift_rows(above, True, ROWS, COLS) + _shift_rows(below, False, ROWS, COLS)


@triton.jit
def to_planes(
    x,
    planes,
    sums,
    pixels,
    H,
    W,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    G0: tl.constexpr,
    K: tl.constexpr,
    SUMS: tl.constexpr,
    P: tl.constexpr,
):
    """Copy x [N, G0, H, W] of any strides to planes [X, N, H, W, K]; channels beyond G0 become zeros.

    Grid: (pixels / P, X).
    sums: [X, pixels / P, K] float32, the sums of x over each program's pixels; not written unless SUMS.
    """
    p = tl.program_id(0) * P + tl.arange(0, P)
    q = tl.program_id(1)
    c = tl.arange(0, K)
    inside = (p < pixels)[:, None]
    at = (p // (H * W)).to(tl.int64) * stride_n + p // W % H * stride_h + p % W * stride_w
    channel = q * K + c
    z = tl.load(x + at[:, None] + channel[None, :] * stride_c, mask=inside & (channel < G0)[None, :], other=0.0)
    tl.store(planes + q.to(tl.int64) * pixels * K + p[:, None] * K + c[None, :], z, mask=inside)
    if SUMS:
        tl.store(sums + (q * tl.num_programs(0) + tl.program_id(0)) * K + c, tl.sum(z.to(tl.float32), 0))


@triton.jit(do_not_specialize=["sources", "first", "N", "H", "W", "across", "down"])
def layer(
    maps,
    tiles,
    bias,
    y,
    sources,
    first,
    N,
    H,
    W,
    across,
    down,
    K: tl.constexpr,
    G: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Compute y = relu(bias + conv3x3(planes 0 .. sources-1)), one plane [N, H, W, K].

    Grid: N * down * across pixel tiles.
    maps: descriptor of the planes as [planes * N, H, W, K] with box [1, ROWS, COLS, K].
    tiles: descriptor of the weights as [tiles * K, K] with box [K, K]; the layer's begin at tile `first`.
    bias: [G].
    """
    image, top, left = _corner(across, down, ROWS, COLS)
    above = tl.zeros((K, ROWS * COLS), tl.float32)
    here = tl.zeros((K, ROWS * COLS), tl.float32)
    below = tl.zeros((K, ROWS * COLS), tl.float32)
    for i in range(0, sources * 3):
        s = i // 3
        column = i % 3
        x = maps.load([s * N + image, top, left + column - 1, 0]).reshape(ROWS * COLS, K).T
        row = (first + s * 9 + column) * K
        above = tl.dot(tiles.load([row, 0]), x, above, input_precision="ieee")
        here = tl.dot(tiles.load([row + 3 * K, 0]), x, here, input_precision="ieee")
        below = tl.dot(tiles.load([row + 6 * K, 0]), x, below, input_precision="ieee")
    c = tl.arange(0, K)
    pixel, written = _pixels(top, left, H, W, ROWS, COLS)
    z = _shift_and_add(above, here, below, COLS) + tl.load(bias + c, mask=c < G, other=0.0).to(tl.float32)[:, None]
    y += image.to(tl.int64) * H * W * K
    z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y + pixel[None, :] * K + c[:, None], z.to(y.dtype.element_ty), mask=written[None, :])


@triton.jit(do_not_specialize=["s", "later", "layers", "first_fusion", "S", "N", "H", "W", "across", "down"])
def data_gradient(
    gradients,
    tiles,
    other,
    d,
    sums,
    s,
    later,
    layers,
    first_fusion,
    S,
    N,
    H,
    W,
    across,
    down,
    X: tl.constexpr,
    K: tl.constexpr,
    OF_INPUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Compute d [N, H, W, K], the gradient of plane s: before a layer's ReLU, or (OF_INPUT) of the block's input.

    Grid: as in `layer`.
    gradients: descriptor as `maps` in `layer` of the gradients known so far: X planes of the block's output, then one
    of each layer, the last layer first, `later` of them.
    tiles: descriptor of all S forward planes' weights as in `layer`; the fusion's begin at tile `first_fusion`.
    other: plane s itself for the ReLU's mask, or (OF_INPUT) plane s of the output's gradient for the local residual.
    sums: [programs, K] float32, the sums of d over each program's pixels; not written if OF_INPUT.
    """
    image, top, left = _corner(across, down, ROWS, COLS)
    above = tl.zeros((K, ROWS * COLS), tl.float32)
    here = tl.zeros((K, ROWS * COLS), tl.float32)
    below = tl.zeros((K, ROWS * COLS), tl.float32)
    for i in range(0, X + later * 3):
        # The transposed convolution: taps in reverse order, weights transposed.
        j = (i - X) // 3
        shift = (i - X) % 3 - 1
        reader = layers - 1 - j
        first = ((reader * X + reader * (reader - 1) // 2 + s) * 9 + 1 - shift) * K
        middle = first + 3 * K
        last = first + 6 * K
        plane = X + j
        if i < X:  # the fusion has no vertical taps: their tiles lie outside the descriptor and read as zeros
            shift = 0
            first = -K
            middle = (first_fusion + i * S + s) * K
            last = -K
            plane = i
        x = gradients.load([plane * N + image, top, left + shift, 0]).reshape(ROWS * COLS, K).T
        above = tl.dot(tiles.load([last, 0]).T, x, above, input_precision="ieee")
        here = tl.dot(tiles.load([middle, 0]).T, x, here, input_precision="ieee")
        below = tl.dot(tiles.load([first, 0]).T, x, below, input_precision="ieee")
    c = tl.arange(0, K)
    z = _shift_and_add(above, here, below, COLS)
    pixel, written = _pixels(top, left, H, W, ROWS, COLS)
    at = image.to(tl.int64) * H * W * K + pixel[None, :] * K + c[:, None]
    f = tl.load(other + at, mask=written[None, :], other=0.0)
    if OF_INPUT:
        tl.store(d + at, (z + f.to(tl.float32)).to(d.dtype.element_ty), mask=written[None, :])
    else:
        z = tl.where(f <= 0, 0.0, z.to(d.dtype.element_ty))  # passes what belongs to a NaN, as torch's ReLU does
        tl.store(d + at, z, mask=written[None, :])
        tl.store(sums + tl.program_id(0) * K + c, tl.sum(z.to(tl.float32), 1))


@triton.jit
def fusion(f, weights, bias, y, S, pixels, G0: tl.constexpr, K: tl.constexpr, P: tl.constexpr):
    """Compute channels q*K .. q*K+K-1 of y = x + bias + conv1x1(all planes) for P pixels.

    Grid: (pixels / P, planes of x), q being the second index.
    f: [S, pixels, K], the first planes being x. weights: tiles [planes of x, S, K, K]. y: [pixels, G0].
    """
    p = tl.program_id(0) * P + tl.arange(0, P)
    q = tl.program_id(1)
    c = tl.arange(0, K)
    inside = (p < pixels)[:, None]
    at = p[:, None] * K + c[None, :]
    z = tl.load(f + q.to(tl.int64) * pixels * K + at, mask=inside, other=0.0).to(tl.float32)
    z += tl.load(bias + q * K + c, mask=q * K + c < G0, other=0.0).to(tl.float32)[None, :]
    weights += q * S * K * K + c[:, None] * K + c[None, :]
    for _ in range(0, S):
        x = tl.load(f + at, mask=inside, other=0.0)
        z = tl.dot(x, tl.load(weights).T, z, input_precision="ieee")
        f += pixels * K
        weights += K * K
    channel = q * K + c
    to = y + p.to(tl.int64)[:, None] * G0 + channel[None, :]
    tl.store(to, z.to(y.dtype.element_ty), mask=inside & (channel < G0)[None, :])
