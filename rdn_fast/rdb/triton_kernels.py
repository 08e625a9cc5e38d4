"""The Triton kernels of the row `triton_planes`; its docstring says what planes and tiles are.

3x3 convolutions: weights stand on the M side of every product and pixels on the N side, since wgmma reads shared memory least so. A
vertical tap moves the output instead of the input: one loaded tile of pixels serves the three taps of a column, each into an accumulator
of its own, and rows are shifted once, after the last source. Loading the pixels anew for each of nine taps is bound by the L2 cache.

Descriptors (TMA) fill what lies outside a picture with zeros: that is the convolution's padding. All products accumulate in float32, and
all sums have a fixed order. `K` is the planes' number of channels throughout, a power of two.
"""

import triton
import triton.language as tl


@triton.jit
def _corner(across, down, ROWS: tl.constexpr, COLS: tl.constexpr):
    """This program's image, and the first row and column of its pixels. Neighbours above and below overlap by two rows."""
    program = tl.program_id(0)
    return program // (across * down), program // across % down * (ROWS - 2), program % across * COLS


@triton.jit
def _pixels(top, left, H, W, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Where this program's pixels lie in their image, and which outputs are its own: the first and last row lack a tap but at the edge."""
    p = tl.arange(0, ROWS * COLS)
    r = p // COLS
    h = top + r
    w = left + p % COLS
    return h * W + w, (w < W) & (h < H) & ((r > 0) | (h == 0)) & ((r < ROWS - 1) | (h == H - 1))


@triton.jit
def _shift_and_add(above, here, below, COLS: tl.constexpr):
    """Sum of the products with the taps above, here and below, [K, ROWS * COLS] each, every one moved to the row of its output."""
    K: tl.constexpr = here.shape[0]
    P: tl.constexpr = here.shape[1]
    p = tl.arange(0, P)
    before = tl.broadcast_to(tl.maximum(p - COLS, 0)[None, :], (K, P))
    here += tl.where((p >= COLS)[None, :], tl.gather(above, before, 1), 0.0)
    behind = tl.broadcast_to(tl.minimum(p + COLS, P - 1)[None, :], (K, P))
    here += tl.where((p < P - COLS)[None, :], tl.gather(below, behind, 1), 0.0)
    return here


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
    """y = relu(bias + conv3x3(planes 0 .. sources-1)): one plane [N, H, W, K]; grid: N * down * across tiles of pixels.

    maps: descriptor of the planes as [planes * N, H, W, K], box [1, ROWS, COLS, K]. tiles: descriptor of the weights as [tiles * K, K],
    box [K, K]; the layer's begin at tile `first`. bias: [G].
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
    pixel, own = _pixels(top, left, H, W, ROWS, COLS)
    z = _shift_and_add(above, here, below, COLS) + tl.load(bias + c, mask=c < G, other=0.0).to(tl.float32)[:, None]
    y += image.to(tl.int64) * H * W * K
    tl.store(y + pixel[None, :] * K + c[:, None], tl.maximum(z, 0.0).to(y.dtype.element_ty), mask=own[None, :])


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
    """d = the gradient of plane s: of a layer's sum before its ReLU, or (OF_INPUT) of the block's input; [N, H, W, K].

    gradients: descriptor of the planes that later launches add to, as `maps` in `layer`: X of the block's output, then one of each layer,
    the last layer first, of which `later` exist. The fusion's tiles begin at `first_fusion`; S: number of forward planes. other: plane s
    itself for the ReLU's mask, or (OF_INPUT) plane s of the output's gradient, which the local residual adds. sums, of layers only:
    [programs, K] float32, the sums of d over the program's pixels.
    """
    image, top, left = _corner(across, down, ROWS, COLS)
    above = tl.zeros((K, ROWS * COLS), tl.float32)
    here = tl.zeros((K, ROWS * COLS), tl.float32)
    below = tl.zeros((K, ROWS * COLS), tl.float32)
    for i in range(0, X + later * 3):
        # A gradient walks back through its layer: taps in reverse, weights transposed.
        j = (i - X) // 3
        shift = (i - X) % 3 - 1
        one = layers - 1 - j
        first = ((one * X + one * (one - 1) // 2 + s) * 9 + 1 - shift) * K
        middle = first + 3 * K
        last = first + 6 * K
        plane = X + j
        if i < X:  # the fusion has no vertical taps: their tiles lie outside, which is zeros
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
    pixel, own = _pixels(top, left, H, W, ROWS, COLS)
    at = image.to(tl.int64) * H * W * K + pixel[None, :] * K + c[:, None]
    f = tl.load(other + at, mask=own[None, :], other=0.0)
    if OF_INPUT:
        tl.store(d + at, (z + f.to(tl.float32)).to(d.dtype.element_ty), mask=own[None, :])
    else:
        z = tl.where(f > 0, z.to(d.dtype.element_ty), 0.0)
        tl.store(d + at, z, mask=own[None, :])
        tl.store(sums + tl.program_id(0) * K + c, tl.sum(z.to(tl.float32), 1))


@triton.jit
def weight_gradient(
    d,
    f,
    partial,
    programs,
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
    """Tiles of the gradient of the weights, over `span` pixels: partial [splits, size] float32; grid: (programs, splits).

    A program multiplies M / K gradient planes of d [rows, pixels, K] with N / K pairs (source plane, tap) of f [S, pixels, K], both
    flattened; programs: [programs, 2] int32 says which. TAPS 9: d's planes are the layers', the last layer first, and the layer i sees
    the first X + i sources. TAPS 1: they are those of the block's output, and the fusion sees all S.
    """
    m = tl.load(programs + tl.program_id(0) * 2) * M + tl.arange(0, M)
    n = tl.load(programs + tl.program_id(0) * 2 + 1) * N + tl.arange(0, N)
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
        one = rows - 1 - row
        sees = X + one
        first = one * X + one * (one - 1) // 2
    else:
        sees = tl.zeros_like(row) + S
        first = row * S
    tile = (first[:, None] + source[None, :]) * TAPS + (n // K % TAPS)[None, :]
    at = partial + tl.program_id(1).to(tl.int64) * size + tile * (K * K) + (m % K)[:, None] * K + (n % K)[None, :]
    tl.store(at, z, mask=(row < rows)[:, None] & (source[None, :] < sees[:, None]))


@triton.jit
def fusion(
    f,
    weights,
    bias,
    y,
    S,
    pixels,
    image,
    W,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    G0: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
):
    """y = x + bias + conv1x1(all planes): channels q*K .. q*K+K-1 of P pixels; grid: (pixels / P, planes of x).

    f: [S, pixels, K], x being its first planes; weights: tiles [planes of x, S, K, K]; image: pixels of an image; y: [N, G0, H, W] with
    the strides given.
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
    h = p % image // W
    w = p % W
    to = (p // image).to(tl.int64) * stride_n + h.to(tl.int64) * stride_h + w.to(tl.int64) * stride_w
    channel = q * K + c
    tl.store(
        y + to[:, None] + (channel * stride_c)[None, :], z.to(y.dtype.element_ty), mask=inside & (channel < G0)[None, :]
    )
