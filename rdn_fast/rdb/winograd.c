/* The residual dense block in float32. Its 3x3 convolutions are computed in the Winograd domain, F(4x4, 3x3) (Lavin and
 * Gray, arXiv:1509.09308): 36 products where the direct convolution takes 144. The 1x1 fusion is a matrix product.
 *
 *   Y = A^T [ (G w G^T) . (B^T d B) ] A     d: a 6x6 tile of the input, Y: 4x4 of the output, . summed over channels
 *
 * A dense block reads every map many times, but transforms it only once: layer j multiplies all earlier maps, V_0..V_j,
 * and appends its own. The backward pass is a dense block in reverse: the gradient D_j = A d_j A^T of each layer is
 * transformed once, and used for the gradients of all earlier maps and of the layer's weights.
 *
 * Interpolation points are 0, +-5/8, +-3/2, infinity: A and B are exact in float32, and rounding errors are half of
 * those of the usual points 0, +-1, +-2 (profiling/LOG.md).
 *
 * Maps are [pixel][channel] with `ldf` floats a pixel. V and D are [36][tile][channel] with `plane` floats from one of
 * the 36 to the next and `ld` from tile to tile. Tiles are numbered image by image, row by row. Results do not depend
 * on how the work is divided among threads, nor on how the batch is divided into calls: every sum has one order.
 */
#include <omp.h>
#include <string.h>

/* VW: floats of a vector. WIDE, MR: vectors and rows of the sums that are kept in registers. Four aarch64 registers are
 * left free: gcc loads a step's factors of all rows first, and spills sums where those do not fit (6 x 4). */
#if defined(__AVX512F__)
enum { VW = 16, WIDE = 2, MR = 12 };
#elif defined(__AVX__)
enum { VW = 8, WIDE = 2, MR = 6 };
#elif defined(__aarch64__)
enum { VW = 4, WIDE = 4, MR = 5 };
#else /* with SSE alone the weights' gradients of rdn-b are beyond the parity bound */
#error needs AVX or aarch64
#endif
enum { NR = WIDE * VW, NARROW = 12, T = 36 }; /* NARROW: rows of a panel of one vector */
enum { BLOCK = 24, ROWS = 192 };              /* tiles that a thread transforms, rows that it multiplies at a time */
enum { SPAN = 256, PIXELS = 1024 };           /* tiles, pixels whose products are summed while they stay in cache */
enum { CHANNELS = 96 };                       /* whose products are summed apart: shorter sums round less */

/* What a product does with the sums in memory: replace them, carry them on, or add its own sum at the end. Only sums
 * that are carried on do not depend on where they are cut. */
typedef enum { REPLACE, CARRY, ADD } mode;

typedef float vec __attribute__((vector_size(VW * sizeof(float)), aligned(4)));
typedef double wide __attribute__((vector_size(VW * sizeof(double))));
typedef int bits __attribute__((vector_size(VW * sizeof(int))));
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

static const float p = 5 / 8.f, q = 3 / 2.f, p2 = 25 / 64.f, q2 = 9 / 4.f; /* points and their squares */
static const float p3 = 125 / 512.f, q3 = 27 / 8.f, pq = 225 / 256.f, pplusq = 169 / 64.f; /* p^2 q^2, p^2 + q^2 */

typedef struct {
    long batch, h, w, g0, g, layers;
} shape;

INLINE long min(long a, long b) { return a < b ? a : b; }
INLINE long up(long n, long to) { return (n + to - 1) / to * to; }
INLINE long rows(const shape *s) { return (s->h + 3) / 4; }
INLINE long columns(const shape *s) { return (s->w + 3) / 4; }
INLINE long per_image(const shape *s) { return rows(s) * columns(s); } /* tiles */
INLINE long tiles(const shape *s) { return s->batch * per_image(s); }

INLINE vec load(const float *from, long n) {
    vec v = {0};
    if (n >= VW) v = *(const vec *)from;
    else memcpy(&v, from, n * sizeof(float));
    return v;
}

INLINE void store(float *to, vec v, long n) {
    if (n >= VW) *(vec *)to = v;
    else memcpy(to, &v, n * sizeof(float));
}

INLINE wide widened(vec v) { return __builtin_convertvector(v, wide); }
INLINE vec rounded(wide v) { return __builtin_convertvector(v, vec); }

/* One-dimensional transforms. i and o: distances between the vectors read and written. */

INLINE void input_1d(const vec *x, int i, vec *y, int o) { /* B^T: 6 -> 6 */
    vec a = x[4 * i] - q2 * x[2 * i], b = p * (x[3 * i] - q2 * x[i]), c = x[4 * i] - p2 * x[2 * i],
        d = q * (x[3 * i] - p2 * x[i]);
    y[0] = x[4 * i] - pplusq * x[2 * i] + pq * x[0];
    y[o] = a + b;
    y[2 * o] = a - b;
    y[3 * o] = c + d;
    y[4 * o] = c - d;
    y[5 * o] = x[5 * i] - pplusq * x[3 * i] + pq * x[i];
}

INLINE void input_adjoint_1d(const vec *x, int i, vec *y, int o) { /* B: 6 -> 6 */
    vec a = x[i] + x[2 * i], b = x[i] - x[2 * i], c = x[3 * i] + x[4 * i], d = x[3 * i] - x[4 * i];
    y[0] = pq * x[0];
    y[o] = pq * x[5 * i] - (p * q2) * b - (q * p2) * d;
    y[2 * o] = -pplusq * x[0] - q2 * a - p2 * c;
    y[3 * o] = p * b + q * d - pplusq * x[5 * i];
    y[4 * o] = x[0] + a + c;
    y[5 * o] = x[5 * i];
}

INLINE void output_1d(const vec *x, int i, vec *y, int o) { /* A^T: 6 -> 4 */
    vec a = x[i] + x[2 * i], b = x[i] - x[2 * i], c = x[3 * i] + x[4 * i], d = x[3 * i] - x[4 * i];
    y[0] = x[0] + a + c;
    y[o] = p * b + q * d;
    y[2 * o] = p2 * a + q2 * c;
    y[3 * o] = p3 * b + q3 * d + x[5 * i];
}

INLINE void output_adjoint_1d(const vec *x, int i, vec *y, int o) { /* A: 4 -> 6 */
    vec a = x[0] + p2 * x[2 * i], b = p * x[i] + p3 * x[3 * i], c = x[0] + q2 * x[2 * i], d = q * x[i] + q3 * x[3 * i];
    y[0] = x[0];
    y[o] = a + b;
    y[2 * o] = a - b;
    y[3 * o] = c + d;
    y[4 * o] = c - d;
    y[5 * o] = x[3 * i];
}

/* G's row factors: 1 / pq, 1 / (2 p^2 (p^2 - q^2)), 1 / (2 q^2 (q^2 - p^2)). float32 would round them, and all weights
 * alike with them: an error that sums over channels and pixels do not average out. */
static const double f0 = 256 / 225., fp = -2048 / 2975., fq = 128 / 1071.;

INLINE void weight_1d(const wide *x, int i, wide *y, int o) { /* G: 3 -> 6 */
    wide a = fp * (x[0] + p2 * x[2 * i]), b = (fp * p) * x[i], c = fq * (x[0] + q2 * x[2 * i]), d = (fq * q) * x[i];
    y[0] = f0 * x[0];
    y[o] = a + b;
    y[2 * o] = a - b;
    y[3 * o] = c + d;
    y[4 * o] = c - d;
    y[5 * o] = x[2 * i];
}

INLINE void weight_adjoint_1d(const wide *x, int i, wide *y, int o) { /* G^T: 6 -> 3 */
    wide a = fp * (x[i] + x[2 * i]), b = (fp * p) * (x[i] - x[2 * i]), c = fq * (x[3 * i] + x[4 * i]),
         d = (fq * q) * (x[3 * i] - x[4 * i]);
    y[0] = f0 * x[0] + a + c;
    y[o] = b + d;
    y[2 * o] = p2 * a + q2 * c + x[5 * i];
}

/* x: [from][from] -> y: [to][to], a one-dimensional transform of rows, then of columns. x and y may overlap. */
#define BOTH_WAYS(transform, x, from, y, to)                                                                           \
    do {                                                                                                               \
        __typeof__(*(y)) half[(to) * (from)];                                                                          \
        for (int j = 0; j < (from); j++) transform((x) + j, from, half + j, from);                                     \
        for (int k = 0; k < (to); k++) transform(half + (from) * k, 1, (y) + (to) * k, 1);                             \
    } while (0)

/* Columns of a matrix product are divided into panels of NR, and for the rest of VW. Panel i begins at column(i). */
INLINE long panels(long np) { return np / NR + np % NR / VW; }
INLINE long column(long np, long i) { return min(i, np / NR) * NR + (i > np / NR ? i - np / NR : 0) * VW; }
INLINE long panel(long np, long col) { return np - col < NR ? VW : NR; } /* columns of the panel at col */
INLINE long panel_of(long np, long c) { return c < np / NR * NR ? c / NR * NR : c / VW * VW; } /* where c lies */
INLINE long steps(long width) { return width == NR ? MR : NARROW; } /* rows that are multiplied at once */

/* c[r][0..n * VW) = sum over k of a[r * ar + k * ak] * b[k * ldb + 0..n * VW), r < m. Inlined with constant m, n. */
INLINE void micro_mn(int m, int n, const float *a, long ar, long ak, const float *b, long ldb, float *c, long ldc,
                     long depth, mode to) {
    vec s[NARROW][WIDE];
    UNROLL for (int r = 0; r < m; r++) {
        UNROLL for (int j = 0; j < n; j++) s[r][j] = to == CARRY ? *(vec *)(c + r * ldc + j * VW) : (vec){0};
    }
    for (long k = 0; k < depth; k++, b += ldb) {
        vec y[WIDE];
        UNROLL for (int j = 0; j < n; j++) y[j] = *(const vec *)(b + j * VW);
        UNROLL for (int r = 0; r < m; r++) {
            float x = a[r * ar + k * ak];
            UNROLL for (int j = 0; j < n; j++) s[r][j] += x * y[j];
        }
    }
    UNROLL for (int r = 0; r < m; r++) {
        UNROLL for (int j = 0; j < n; j++) {
            vec *sum = (vec *)(c + r * ldc + j * VW);
            *sum = to == ADD ? *sum + s[r][j] : s[r][j];
        }
    }
}

INLINE void micro_n(long m, int n, const float *a, long ar, long ak, const float *b, long ldb, float *c, long ldc,
                    long depth, mode to) {
    switch (m) { /* clang-format off */
#define CASE(m) case m: if (n == 1 || m <= MR) micro_mn(m, n, a, ar, ak, b, ldb, c, ldc, depth, to); break;
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
    } /* clang-format on */
}

/* c[m][width] = a @ b for one panel, m <= steps(width) */
static void micro(long m, long width, const float *a, long ar, long ak, const float *b, long ldb, float *c, long ldc,
                  long depth, mode to) {
    if (width == NR) micro_n(m, WIDE, a, ar, ak, b, ldb, c, ldc, depth, to);
    else micro_n(m, 1, a, ar, ak, b, ldb, c, ldc, depth, to);
}

/* m[t] [n tiles][np] = v[t] [n][depth] @ u[t] [panel][depth][width] for each t. Called by all threads together. */
static void products(const float *v, long ld, long plane, const float *u, long depth, long np, float *m, long mplane,
                     long n) {
#pragma omp for schedule(dynamic, 1) collapse(2)
    for (long t = 0; t < T; t++)
        for (long tile = 0; tile < n; tile += ROWS) {
            long end = min(tile + ROWS, n);
            for (long col = 0, width; col < np; col += width) {
                width = panel(np, col);
                for (long r = tile; r < end; r += steps(width))
                    for (long k = 0; k < depth; k += CHANNELS)
                        micro(min(steps(width), end - r), width, v + t * plane + r * ld + k, ld, 1,
                              u + (t * np + col) * depth + k * width, width, m + t * mplane + r * np + col, np,
                              min(CHANNELS, depth - k), k ? ADD : REPLACE);
            }
        }
}

typedef struct {
    long image, y, x;
} place;

INLINE place where(const shape *s, long tile) {
    long per_row = columns(s);
    return (place){tile / per_image(s), tile % per_image(s) / per_row * 4, tile % per_row * 4};
}

/* v[t * plane + channel] of one tile, from n channels of a map */
static void input_tile(const shape *s, long tile, const float *map, long ldf, long n, float *v, long plane) {
    place at = where(s, tile);
    const float *pixel[T];
    for (long i = 0; i < T; i++) {
        long y = at.y - 1 + i / 6, x = at.x - 1 + i % 6;
        pixel[i] = y < 0 || y >= s->h || x < 0 || x >= s->w ? 0 : map + ((at.image * s->h + y) * s->w + x) * ldf;
    }
    for (long c = 0; c < n; c += VW) {
        vec d[T];
        for (long i = 0; i < T; i++) d[i] = pixel[i] ? load(pixel[i] + c, n - c) : (vec){0};
        BOTH_WAYS(input_1d, d, 6, d, 6);
        for (long i = 0; i < T; i++) store(v + i * plane + c, d[i], n - c);
    }
}

/* relu(A^T m A + bias) of one tile into n channels of a map */
static void output_tile(const shape *s, long tile, const float *m, long mplane, const float *bias, float *map, long ldf,
                        long n) {
    place at = where(s, tile);
    for (long c = 0; c < n; c += VW) {
        vec x[T], y[16], b = load(bias + c, n - c);
        for (long i = 0; i < T; i++) x[i] = *(const vec *)(m + i * mplane + c);
        BOTH_WAYS(output_1d, x, 6, y, 4);
        for (long i = 0; i < 4 && at.y + i < s->h; i++)
            for (long j = 0; j < 4 && at.x + j < s->w; j++) {
                vec z = y[4 * i + j] + b;
                z = (vec)((bits)z & ~(z < 0)); /* keeps NaN, as torch's relu does */
                store(map + ((at.image * s->h + at.y + i) * s->w + at.x + j) * ldf + c, z, n - c);
            }
    }
}

/* Memory layout. Rows and planes are an odd number of cache lines long, so that the 36 planes use different cache sets.
 * Layers count from 0. Map 0 is the block's input, map j + 1 is layer j's output. f's rows are whole cache lines. */
INLINE long padded(long n) { return up(n, VW); }
INLINE long odd_lines(long n) { return up(n, 16) | 16; }
INLINE long reads(const shape *s, long layer) { return s->g0 + layer * s->g; } /* channels that a layer reads */
INLINE long width(const shape *s, long map) { return map ? s->g : s->g0; }     /* channels of a map */
INLINE long start(const shape *s, long map) { return map ? reads(s, map - 1) : 0; }
INLINE long f_ld(const shape *s) { return up(reads(s, s->layers), 16); }
INLINE long slot(const shape *s, long layer) { return (s->layers - 1 - layer) * s->g; } /* in D: last layer first */
INLINE long v_ld(const shape *s) { return odd_lines(padded(reads(s, s->layers - 1))); }
INLINE long d_ld(const shape *s) { return odd_lines(s->layers * s->g); }
INLINE long widest(const shape *s) { return padded(s->g0 > s->g ? s->g0 : s->g); }
INLINE long blocks(const shape *s) { return (per_image(s) + BLOCK - 1) / BLOCK; } /* of an image */

/* Offset of a layer's weights among the transformed ones: [T][panel][channels in][width]. */
static long of_layer(const shape *s, long layer) {
    return T * padded(s->g) * (layer * s->g0 + layer * (layer - 1) / 2 * s->g);
}

/* Offset of the gradients of a layer's transformed weights: [T][g][padded(channels in)]. */
static long of_gradient(const shape *s, long layer) {
    long n = 0;
    for (long j = 0; j < layer; j++) n += padded(reads(s, j));
    return T * s->g * n;
}

/* Offset of the weights that a map's gradient is computed with: [T][panel][channels of its readers, last first][width].
 */
static long of_map(const shape *s, long map) {
    long n = 0;
    for (long m = 0; m < map; m++) n += padded(width(s, m)) * (s->layers - m);
    return T * s->g * n;
}

/* The fusion's weights follow: forward [panel][channels in][width], for a map's gradient [panel][g0][width]. */
INLINE long fusion_of_map(const shape *s, long map) {
    return of_map(s, s->layers) + s->g0 * (map ? padded(s->g0) + (map - 1) * padded(s->g) : 0);
}

long rdn_packed(const shape *s, long backward) {
    return backward ? fusion_of_map(s, s->layers + 1) : of_layer(s, s->layers) + padded(s->g0) * reads(s, s->layers);
}

/* Floats of the buffer of all maps */
long rdn_maps(const shape *s) { return s->batch * s->h * s->w * f_ld(s); }

/* The gradients of the fusion's weights follow, [g0][as wide as f], then those of its bias, [g0], and of the layers'
 * biases, [layer][g]. */
INLINE long of_fusion(const shape *s) { return of_gradient(s, s->layers); }
INLINE long of_biases(const shape *s) { return of_fusion(s) + s->g0 * f_ld(s); }
long rdn_gradients(const shape *s) { return of_biases(s) + s->g0 + s->layers * s->g; }

/* Floats of memory: of rdn_backward for `images` at a time, of rdn_forward if there are none. */
long rdn_workspace(const shape *s, long images) {
    long v = T * odd_lines(tiles(s) * v_ld(s));
    if (!images) return v + T * odd_lines(tiles(s) * widest(s));
    long n = images * per_image(s), d = T * odd_lines(tiles(s) * d_ld(s));
    return v + d + T * n * widest(s) + T * odd_lines(n * widest(s)) + images * blocks(s) * padded(s->g);
}

/* w[layer]: [g][3][3][channels in], fuse: [g0][g0 + layers * g] -> u, weights for the forward pass */
void rdn_pack_forward(const shape *s, const float *const *w, const float *fuse, float *u) {
    long np = padded(s->g), channels = reads(s, s->layers);
#pragma omp parallel
    {
        for (long layer = 0; layer < s->layers; layer++) {
            long depth = reads(s, layer);
            float *to = u + of_layer(s, layer);
#pragma omp for schedule(static) nowait
            for (long k = 0; k < depth; k += VW)
                for (long col = 0, width; col < np; col += width) {
                    vec x[T][NR];
                    width = panel(np, col);
                    for (long o = 0; o < width; o++) {
                        wide y[T] = {{0}};
                        const float *from = w[layer] + (col + o) * 9 * depth + k;
                        if (col + o < s->g)
                            for (long i = 0; i < 9; i++) y[i] = widened(load(from + i * depth, depth - k));
                        BOTH_WAYS(weight_1d, y, 3, y, 6);
                        for (long t = 0; t < T; t++) x[t][o] = rounded(y[t]);
                    }
                    for (long t = 0; t < T; t++)
                        for (long i = 0; i < min(VW, depth - k); i++)
                            for (long o = 0; o < width; o++)
                                to[(t * np + col) * depth + (k + i) * width + o] = x[t][o][i];
                }
        }
        float *to = u + of_layer(s, s->layers);
#pragma omp for schedule(static)
        for (long k = 0; k < channels; k++)
            for (long o = 0; o < padded(s->g0); o++) {
                long col = panel_of(padded(s->g0), o), width = panel(padded(s->g0), col);
                to[col * channels + k * width + o - col] = o < s->g0 ? fuse[o * channels + k] : 0;
            }
    }
}

/* w, fuse -> u, weights for the maps' gradients */
void rdn_pack_backward(const shape *s, const float *const *w, const float *fuse, float *u) {
#pragma omp parallel
    for (long map = 0; map <= s->layers; map++) {
        long n = width(s, map), np = padded(n), depth = (s->layers - map) * s->g;
        float *to = u + of_map(s, map), *fusion = u + fusion_of_map(s, map);
#pragma omp for schedule(static) nowait
        for (long k = 0; k < depth; k++) { /* an output channel of a reader */
            long layer = s->layers - 1 - k / s->g, ld = reads(s, layer);
            const float *from = w[layer] + k % s->g * 9 * ld + start(s, map);
            for (long c = 0; c < np; c += VW) {
                long col = panel_of(np, c);
                wide y[T] = {{0}};
                if (c < n)
                    for (long i = 0; i < 9; i++) y[i] = widened(load(from + i * ld + c, n - c));
                BOTH_WAYS(weight_1d, y, 3, y, 6);
                for (long t = 0; t < T; t++)
                    *(vec *)(to + (t * np + col) * depth + k * panel(np, col) + c - col) = rounded(y[t]);
            }
        }
#pragma omp for schedule(static) nowait
        for (long k = 0; k < s->g0; k++)
            for (long c = 0; c < np; c++) {
                long col = panel_of(np, c);
                float x = c < n ? fuse[k * reads(s, s->layers) + start(s, map) + c] : 0;
                fusion[col * s->g0 + k * panel(np, col) + c - col] = x;
            }
    }
}

/* du -> dw[layer]: [g][3][3][channels in], db[layer]: [g], dfuse: [g0][channels], dfuse_b: [g0] */
void rdn_unpack(const shape *s, const float *du, float *const *dw, float *const *db, float *dfuse, float *dfuse_b) {
    long channels = reads(s, s->layers);
    const float *biases = du + of_biases(s);
    memcpy(dfuse_b, biases, s->g0 * sizeof(float));
    for (long layer = 0; layer < s->layers; layer++)
        memcpy(db[layer], biases + s->g0 + layer * s->g, s->g * sizeof(float));
    for (long o = 0; o < s->g0; o++)
        memcpy(dfuse + o * channels, du + of_fusion(s) + o * f_ld(s), channels * sizeof(float));
#pragma omp parallel
    for (long layer = 0; layer < s->layers; layer++) {
        long depth = reads(s, layer), ld = padded(depth);
        const float *from = du + of_gradient(s, layer);
#pragma omp for schedule(static) nowait
        for (long o = 0; o < s->g; o++)
            for (long k = 0; k < depth; k += VW) {
                wide y[T];
                for (long t = 0; t < T; t++) y[t] = widened(*(const vec *)(from + (t * s->g + o) * ld + k));
                BOTH_WAYS(weight_adjoint_1d, y, 6, y, 3);
                for (long j = 0; j < 9; j++) store(dw[layer] + (o * 9 + j) * depth + k, rounded(y[j]), depth - k);
            }
    }
}

/* y: [pixel][g0] = f @ u [panel][depth][width] + bias + the block's input, n pixels */
static void fuse_pixels(const shape *s, const float *f, const float *u, const float *bias, float *y, long n) {
    long depth = reads(s, s->layers), np = padded(s->g0);
    for (long col = 0, width; col < np; col += width) {
        width = panel(np, col);
        for (long pixel = 0; pixel < n; pixel += steps(width)) {
            float part[NARROW * NR];
            long m = min(steps(width), n - pixel);
            micro(m, width, f + pixel * f_ld(s), f_ld(s), 1, u + col * depth, width, part, width, depth, REPLACE);
            for (long r = 0; r < m; r++)
                for (long c = 0; c < min(width, s->g0 - col); c += VW) {
                    long at = col + c, n = s->g0 - at;
                    vec sum = *(vec *)(part + r * width + c) + load(bias + at, n);
                    store(y + (pixel + r) * s->g0 + at, sum + load(f + (pixel + r) * f_ld(s) + at, n), n);
                }
        }
    }
}

/* x: [pixel][g0]. u: from rdn_pack_forward. bias[layer]: [g]. fuse_bias: [g0] -> f: all maps, [pixel][g0 + layers * g,
 * rounded up to 16], of rdn_maps floats for the whole batch, of which this call's begin at `image`; y: [pixel][g0] */
void rdn_forward(const shape *s, const float *x, float *f, long image, const float *u, const float *const *bias,
                 const float *fuse_bias, float *y, float *work) {
    long n = tiles(s), ldf = f_ld(s), ld = v_ld(s), plane = odd_lines(n * ld), np = padded(s->g),
         mplane = odd_lines(n * np), pixels = s->batch * s->h * s->w;
    float *v = work, *m = v + T * plane;
    f += image * s->h * s->w * ldf;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (long pixel = 0; pixel < pixels; pixel++) memcpy(f + pixel * ldf, x + pixel * s->g0, s->g0 * sizeof(float));
#pragma omp for schedule(dynamic, BLOCK)
        for (long tile = 0; tile < n; tile++) input_tile(s, tile, f, ldf, s->g0, v + tile * ld, plane);
        for (long layer = 0; layer < s->layers; layer++) {
            long c = reads(s, layer);
            products(v, ld, plane, u + of_layer(s, layer), c, np, m, mplane, n);
#pragma omp for schedule(dynamic, BLOCK)
            for (long tile = 0; tile < n; tile++)
                output_tile(s, tile, m + tile * np, mplane, bias[layer], f + c, ldf, s->g);
            if (layer + 1 < s->layers) {
#pragma omp for schedule(dynamic, BLOCK)
                for (long tile = 0; tile < n; tile++) input_tile(s, tile, f + c, ldf, s->g, v + tile * ld + c, plane);
            }
        }
#pragma omp for schedule(dynamic, 1)
        for (long pixel = 0; pixel < pixels; pixel += ROWS)
            fuse_pixels(s, f + pixel * ldf, u + of_layer(s, s->layers), fuse_bias, y + pixel * s->g0,
                        min(ROWS, pixels - pixel));
    }
}

/* z: [tile][T][np], each tile's part of the gradient of its 6x6 pixels -> y: the sums for one tile's 4x4 pixels */
INLINE void gather(const float *const near[3][3], long np, long c, vec *y) {
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            /* The neighbour that covers this pixel too, and the pixel's place in it. */
            int di = i == 0 ? 0 : i == 3 ? 2 : 1, dj = j == 0 ? 0 : j == 3 ? 2 : 1;
            int zi = di == 0 ? 5 : 0, zj = dj == 0 ? 5 : 0;
            vec sum = *(const vec *)(near[1][1] + ((i + 1) * 6 + j + 1) * np + c);
            if (di != 1 && near[di][1]) sum += *(const vec *)(near[di][1] + (zi * 6 + j + 1) * np + c);
            if (dj != 1 && near[1][dj]) sum += *(const vec *)(near[1][dj] + ((i + 1) * 6 + zj) * np + c);
            if (di != 1 && dj != 1 && near[di][dj]) sum += *(const vec *)(near[di][dj] + (zi * 6 + zj) * np + c);
            y[4 * i + j] = sum;
        }
}

/* Compute one tile of a map's gradient: gy @ fuse [panel][g0][width], plus z (from the map's readers, or 0). For the
 * block's input gy is added, and it is stored in dx [pixel][n]. For a layer's output it is masked by f > 0, transformed
 * into d, and added to the bias gradient db. */
static void gradient_tile(const shape *s, long tile, const float *gy, const float *fuse, const float *z, long n,
                          float *dx, const float *f, float *d, long plane, float *db) {
    place at = where(s, tile);
    long np = padded(n), corner = (at.image * s->h + at.y) * s->w + at.x;
    const float *near[3][3];
    for (long i = 0; i < 3; i++)
        for (long j = 0; j < 3; j++) {
            long y = at.y / 4 + i - 1, x = at.x / 4 + j - 1;
            int inside = y >= 0 && y < rows(s) && x >= 0 && x < columns(s);
            near[i][j] = z && inside ? z + (tile + (i - 1) * columns(s) + j - 1) * T * np : 0;
        }
    for (long c = 0, col = 0, width = 0; c < n; c += VW) {
        float e[16 * NR];
        vec y[T] = {{0}};
        vec sum = {0};
        if (c == col + width) {
            col = c, width = panel(np, col);
            for (long i = 0; i < min(4, s->h - at.y); i++)
                micro(min(4, s->w - at.x), width, gy + (corner + i * s->w) * s->g0, s->g0, 1, fuse + col * s->g0, width,
                      e + 4 * i * NR, NR, s->g0, REPLACE);
        }
        if (z) gather(near, np, c, y);
        for (long i = 0; i < 4; i++)
            for (long j = 0; j < 4; j++) {
                if (at.y + i >= s->h || at.x + j >= s->w) {
                    y[4 * i + j] = (vec){0};
                    continue;
                }
                long pixel = corner + i * s->w + j;
                vec g = y[4 * i + j] + *(vec *)(e + (4 * i + j) * NR + c - col);
                if (dx) store(dx + pixel * n + c, g + load(gy + pixel * n + c, n - c), n - c);
                else sum += y[4 * i + j] = (vec)((bits)g & (load(f + pixel * f_ld(s) + c, n - c) > 0));
            }
        if (dx) continue;
        BOTH_WAYS(output_adjoint_1d, y, 4, y, 6);
        for (long i = 0; i < T; i++) store(d + i * plane + c, y[i], n - c);
        store(db + c, load(db + c, n - c) + sum, n - c);
    }
}

/* Gradients of the fusion's weights, dfuse: [g0][f_ld], and bias, db: [g0]. Called by all threads together. Images are
 * summed one by one. */
static void fusion_gradients(const shape *s, const float *f, const float *gy, float *dfuse, float *db, long add) {
    long ldf = f_ld(s), pixels = s->h * s->w;
#pragma omp for schedule(dynamic, 1) collapse(2) nowait
    for (long i = 0; i < panels(ldf); i++)
        for (long r = 0; r < s->g0; r += MR) {
            long col = column(ldf, i), width = panel(ldf, col), m = min(MR, s->g0 - r);
            for (long image = 0; image < s->batch; image++)
                for (long pixel = 0; pixel < pixels; pixel += PIXELS) {
                    long at = image * pixels + pixel;
                    micro(m, width, gy + at * s->g0 + r, 1, s->g0, f + at * ldf + col, ldf, dfuse + r * ldf + col, ldf,
                          min(PIXELS, pixels - pixel), add || at ? ADD : REPLACE);
                }
        }
#pragma omp for schedule(static) nowait
    for (long c = 0; c < s->g0; c += VW) {
        vec sum = add ? load(db + c, s->g0 - c) : (vec){0};
        for (long image = 0; image < s->batch; image++) {
            vec part = {0};
            for (long y = 0; y < s->h; y++) {
                vec row = {0};
                for (long x = 0; x < s->w; x++)
                    row += load(gy + ((image * s->h + y) * s->w + x) * s->g0 + c, s->g0 - c);
                part += row;
            }
            sum += part;
        }
        store(db + c, sum, s->g0 - c);
    }
}

/* The gradients of some images, but for those of the layers' weights, for which v and d are kept: see rdn_backward.
 * Called by all threads together. */
static void map_gradients(const shape *s, const float *f, const float *gy, const float *u, float *dx, float *db,
                          float *dfuse, float *dfuse_b, long add, float *v, long vplane, float *d, long dplane,
                          float *z) {
    long n = tiles(s), ldf = f_ld(s), depth = reads(s, s->layers - 1), all = s->batch * blocks(s), vld = v_ld(s),
         dld = d_ld(s), mplane = odd_lines(n * widest(s));
    float *m = z + n * T * widest(s), *sums = m + T * mplane;
    fusion_gradients(s, f, gy, dfuse, dfuse_b, add);
#pragma omp for schedule(dynamic, BLOCK) nowait
    for (long tile = 0; tile < n; tile++) input_tile(s, tile, f, ldf, depth, v + tile * vld, vplane);
    for (long map = s->layers; map >= 0; map--) {
        long c = width(s, map), np = padded(c), layer = map - 1;
        if (map < s->layers) {
            products(d, dld, dplane, u + of_map(s, map), (s->layers - map) * s->g, np, m, mplane, n);
#pragma omp for schedule(dynamic, BLOCK)
            for (long tile = 0; tile < n; tile++)
                for (long k = 0; k < np; k += VW) {
                    vec x[T];
                    for (long t = 0; t < T; t++) x[t] = *(const vec *)(m + t * mplane + tile * np + k);
                    BOTH_WAYS(input_adjoint_1d, x, 6, x, 6);
                    for (long t = 0; t < T; t++) *(vec *)(z + (tile * T + t) * np + k) = x[t];
                }
        }
#pragma omp for schedule(dynamic, 1)
        for (long block = 0; block < all; block++) {
            long image = block / blocks(s) * per_image(s), first = image + block % blocks(s) * BLOCK;
            float *sum = sums + block * padded(s->g);
            memset(sum, 0, padded(s->g) * sizeof(float));
            for (long i = first; i < min(first + BLOCK, image + per_image(s)); i++)
                gradient_tile(s, i, gy, u + fusion_of_map(s, map), map < s->layers ? z : 0, c, map ? 0 : dx,
                              f + start(s, map), d + i * dld + (map ? slot(s, layer) : 0), dplane, sum);
        }
        if (map) {
#pragma omp single
            for (long k = 0; k < c; k++) {
                float sum = add ? db[layer * c + k] : 0;
                for (long i = 0; i < all; i++) sum += sums[i * padded(s->g) + k];
                db[layer * c + k] = sum;
            }
        }
    }
}

/* f: from rdn_forward, this call's maps beginning at `image`. gy: [pixel][g0]. u: from rdn_pack_backward -> dx:
 * [pixel][g0]; du: rdn_gradients floats, for rdn_unpack. add: add to du instead of overwriting it.
 * images: how many have their maps' gradients computed at a time: few stay in the caches. The weights' gradients are
 * larger than the maps of a few images (rdn-b: 21 MB), and are read and written once for all of them. */
void rdn_backward(const shape *s, long images, const float *f, long image, const float *gy, const float *u, float *dx,
                  float *du, long add, float *work) {
    long n = tiles(s), vld = v_ld(s), vplane = odd_lines(n * vld), dld = d_ld(s), dplane = odd_lines(n * dld);
    float *v = work, *d = v + T * vplane;
    float *dfuse = du + of_fusion(s), *dfuse_b = du + of_biases(s), *db = dfuse_b + s->g0;
    f += image * s->h * s->w * f_ld(s);
#pragma omp parallel
    {
        for (long first = 0; first < s->batch; first += images) {
            shape part = *s;
            part.batch = min(images, s->batch - first);
            long tile = first * per_image(s), pixel = first * s->h * s->w;
            map_gradients(&part, f + pixel * f_ld(s), gy + pixel * s->g0, u, dx + pixel * s->g0, db, dfuse, dfuse_b,
                          add || first, v + tile * vld, vplane, d + tile * dld, dplane, d + T * dplane);
        }
#pragma omp for schedule(dynamic, 1) collapse(2)
        for (long layer = s->layers - 1; layer >= 0; layer--)
            for (long t = 0; t < T; t++) {
                long np = padded(reads(s, layer));
                float *to = du + of_gradient(s, layer) + t * s->g * np;
                for (long tile = 0; tile < n; tile += SPAN)
                    for (long col = 0, width; col < np; col += width) {
                        width = panel(np, col);
                        for (long r = 0; r < s->g; r += steps(width))
                            micro(min(steps(width), s->g - r), width, d + t * dplane + tile * dld + slot(s, layer) + r,
                                  1, dld, v + t * vplane + tile * vld + col, vld, to + r * np + col, np,
                                  min(SPAN, n - tile), add || tile ? CARRY : REPLACE);
                    }
            }
    }
}
