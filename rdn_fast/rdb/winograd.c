/* The residual dense block's 3x3 convolutions in the Winograd domain, F(4x4, 3x3) (Lavin and Gray, arXiv:1509.09308),
 * in float32: 36 products where the direct convolution takes 144.
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
 * on how the work is divided among threads.
 */
#include <omp.h>
#include <string.h>

#if defined(__AVX512F__)
enum { VW = 16, MR = 12 };
#elif defined(__AVX__)
enum { VW = 8, MR = 6 };
#else
enum { VW = 4, MR = 6 };
#endif
enum { NR = 2 * VW, T = 36 };
enum { BLOCK = 24, ROWS = 192 }; /* tiles that a thread transforms, multiplies at a time */

typedef float vec __attribute__((vector_size(VW * sizeof(float)), aligned(4)));
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
INLINE long tiles(const shape *s) { return s->batch * rows(s) * columns(s); }

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

/* G's row factors: 1 / pq, 1 / (2 p^2 (p^2 - q^2)), 1 / (2 q^2 (q^2 - p^2)) */
static const float f0 = 256 / 225.f, fp = -2048 / 2975.f, fq = 128 / 1071.f;

INLINE void weight_1d(const vec *x, int i, vec *y, int o) { /* G: 3 -> 6 */
    vec a = fp * (x[0] + p2 * x[2 * i]), b = (fp * p) * x[i], c = fq * (x[0] + q2 * x[2 * i]), d = (fq * q) * x[i];
    y[0] = f0 * x[0];
    y[o] = a + b;
    y[2 * o] = a - b;
    y[3 * o] = c + d;
    y[4 * o] = c - d;
    y[5 * o] = x[2 * i];
}

INLINE void weight_adjoint_1d(const vec *x, int i, vec *y, int o) { /* G^T: 6 -> 3 */
    vec a = fp * (x[i] + x[2 * i]), b = (fp * p) * (x[i] - x[2 * i]), c = fq * (x[3 * i] + x[4 * i]),
        d = (fq * q) * (x[3 * i] - x[4 * i]);
    y[0] = f0 * x[0] + a + c;
    y[o] = b + d;
    y[2 * o] = p2 * a + q2 * c + x[5 * i];
}

/* x: [from][from] -> y: [to][to], a one-dimensional transform of rows, then of columns. x and y may overlap. */
#define BOTH_WAYS(transform, x, from, y, to)                                                                           \
    do {                                                                                                               \
        vec half[(to) * (from)];                                                                                       \
        for (int j = 0; j < (from); j++) transform((x) + j, from, half + j, from);                                     \
        for (int k = 0; k < (to); k++) transform(half + (from) * k, 1, (y) + (to) * k, 1);                             \
    } while (0)

/* c[r][0..NR) (+)= sum over k of a[r * ar + k * ak] * b[k * ldb + 0..NR), r < n. Inlined with a constant n. */
INLINE void micro_n(int n, const float *a, long ar, long ak, const float *b, long ldb, float *c, long ldc, long depth,
                    int add) {
    vec s[MR][2];
    UNROLL for (int r = 0; r < n; r++) {
        s[r][0] = add ? *(vec *)(c + r * ldc) : (vec){0};
        s[r][1] = add ? *(vec *)(c + r * ldc + VW) : (vec){0};
    }
    for (long k = 0; k < depth; k++, b += ldb) {
        vec b0 = *(const vec *)b, b1 = *(const vec *)(b + VW);
        UNROLL for (int r = 0; r < n; r++) {
            float x = a[r * ar + k * ak];
            s[r][0] += x * b0;
            s[r][1] += x * b1;
        }
    }
    UNROLL for (int r = 0; r < n; r++) {
        *(vec *)(c + r * ldc) = s[r][0];
        *(vec *)(c + r * ldc + VW) = s[r][1];
    }
}

static void micro(long n, const float *a, long ar, long ak, const float *b, long ldb, float *c, long ldc, long depth,
                  int add) {
    switch (n) { /* clang-format off */
#define CASE(m) case m: micro_n(m, a, ar, ak, b, ldb, c, ldc, depth, add); break;
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if defined(__AVX512F__)
    CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
    } /* clang-format on */
}

/* m[t] [n tiles][np] = v[t] [n][depth] @ u[t] [panel][depth][NR] for each t. Called by all threads together. */
static void products(const float *v, long ld, long plane, const float *u, long depth, long np, float *m, long mplane,
                     long n) {
#pragma omp for schedule(dynamic, 1) collapse(2)
    for (long t = 0; t < T; t++)
        for (long tile = 0; tile < n; tile += ROWS)
            for (long col = 0; col < np; col += NR)
                for (long r = tile; r < min(tile + ROWS, n); r += MR)
                    micro(min(MR, min(tile + ROWS, n) - r), v + t * plane + r * ld, ld, 1, u + (t * np + col) * depth,
                          NR, m + t * mplane + r * np + col, np, depth, 0);
}

typedef struct {
    long image, y, x;
} place;

INLINE place where(const shape *s, long tile) {
    long per_row = columns(s), per_image = rows(s) * per_row;
    return (place){tile / per_image, tile % per_image / per_row * 4, tile % per_row * 4};
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
 * Layers count from 0. Map 0 is the block's input, map j + 1 is layer j's output. */
INLINE long padded(long n) { return up(n, NR); }
INLINE long odd_lines(long n) { return up(n, 16) | 16; }
INLINE long reads(const shape *s, long layer) { return s->g0 + layer * s->g; } /* channels that a layer reads */
INLINE long width(const shape *s, long map) { return map ? s->g : s->g0; }     /* channels of a map */
INLINE long start(const shape *s, long map) { return map ? reads(s, map - 1) : 0; }
INLINE long slot(const shape *s, long layer) { return (s->layers - 1 - layer) * s->g; } /* in D: last layer first */
INLINE long v_ld(const shape *s) { return odd_lines(padded(reads(s, s->layers - 1))); }
INLINE long d_ld(const shape *s) { return odd_lines(s->layers * s->g); }
INLINE long widest(const shape *s) { return padded(s->g0 > s->g ? s->g0 : s->g); }
INLINE long blocks(const shape *s) { return (tiles(s) + BLOCK - 1) / BLOCK; }

/* Offset of a layer's weights among the transformed ones: [T][panel][channels in][NR]. */
static long of_layer(const shape *s, long layer) {
    return T * padded(s->g) * (layer * s->g0 + layer * (layer - 1) / 2 * s->g);
}

/* Offset of the gradients of a layer's transformed weights: [T][g][padded(channels in)]. */
static long of_gradient(const shape *s, long layer) {
    long n = 0;
    for (long j = 0; j < layer; j++) n += padded(reads(s, j));
    return T * s->g * n;
}

/* Offset of the weights that a map's gradient is computed with: [T][panel][channels of its readers, last first][NR]. */
static long of_map(const shape *s, long map) {
    long n = 0;
    for (long m = 0; m < map; m++) n += padded(width(s, m)) * (s->layers - m);
    return T * s->g * n;
}

long rdn_packed(const shape *s, int backward) { return backward ? of_map(s, s->layers) : of_layer(s, s->layers); }
long rdn_gradients(const shape *s) { return of_gradient(s, s->layers); }

long rdn_workspace(const shape *s, int backward) {
    long m = T * odd_lines(tiles(s) * widest(s)), n = T * odd_lines(tiles(s) * v_ld(s)) + m;
    return backward ? n + T * odd_lines(tiles(s) * d_ld(s)) + tiles(s) * T * widest(s) + blocks(s) * padded(s->g) : n;
}

/* w[layer]: [g][3][3][channels in] -> u, weights for the forward pass */
void rdn_pack_forward(const shape *s, const float *const *w, float *u) {
    long np = padded(s->g);
#pragma omp parallel
    for (long layer = 0; layer < s->layers; layer++) {
        long depth = reads(s, layer);
        float *to = u + of_layer(s, layer);
#pragma omp for schedule(static) nowait
        for (long k = 0; k < depth; k += VW)
            for (long col = 0; col < np; col += NR) {
                vec x[T][NR];
                for (long o = 0; o < NR; o++) {
                    vec y[T] = {{0}};
                    if (col + o < s->g)
                        for (long i = 0; i < 9; i++) y[i] = load(w[layer] + ((col + o) * 9 + i) * depth + k, depth - k);
                    BOTH_WAYS(weight_1d, y, 3, y, 6);
                    for (long t = 0; t < T; t++) x[t][o] = y[t];
                }
                for (long t = 0; t < T; t++)
                    for (long i = 0; i < min(VW, depth - k); i++)
                        for (long o = 0; o < NR; o++) to[(t * np + col) * depth + (k + i) * NR + o] = x[t][o][i];
            }
    }
}

/* w -> u, weights for the maps' gradients */
void rdn_pack_backward(const shape *s, const float *const *w, float *u) {
#pragma omp parallel
    for (long map = 0; map < s->layers; map++) {
        long n = width(s, map), np = padded(n), depth = (s->layers - map) * s->g;
        float *to = u + of_map(s, map);
#pragma omp for schedule(static) nowait
        for (long k = 0; k < depth; k++) { /* an output channel of a reader */
            long layer = s->layers - 1 - k / s->g, ld = reads(s, layer);
            const float *from = w[layer] + k % s->g * 9 * ld + start(s, map);
            for (long c = 0; c < np; c += VW) {
                vec y[T] = {{0}};
                if (c < n)
                    for (long i = 0; i < 9; i++) y[i] = load(from + i * ld + c, n - c);
                BOTH_WAYS(weight_1d, y, 3, y, 6);
                for (long t = 0; t < T; t++) *(vec *)(to + (t * np + c / NR * NR) * depth + k * NR + c % NR) = y[t];
            }
        }
    }
}

/* gradients of the transformed weights -> dw[layer]: [g][3][3][channels in] */
void rdn_unpack(const shape *s, const float *du, float *const *dw) {
#pragma omp parallel
    for (long layer = 0; layer < s->layers; layer++) {
        long depth = reads(s, layer), ld = padded(depth);
        const float *from = du + of_gradient(s, layer);
#pragma omp for schedule(static) nowait
        for (long o = 0; o < s->g; o++)
            for (long k = 0; k < depth; k += VW) {
                vec y[T];
                for (long t = 0; t < T; t++) y[t] = *(const vec *)(from + (t * s->g + o) * ld + k);
                BOTH_WAYS(weight_adjoint_1d, y, 6, y, 3);
                for (long j = 0; j < 9; j++) store(dw[layer] + (o * 9 + j) * depth + k, y[j], depth - k);
            }
    }
}

/* f: [pixel][g0 + layers * g]. Its first g0 channels are the block's input; computes the others. bias[layer]: [g] */
void rdn_forward(const shape *s, float *f, const float *u, const float *const *bias, float *work) {
    long n = tiles(s), ldf = reads(s, s->layers), ld = v_ld(s), plane = odd_lines(n * ld), np = padded(s->g),
         mplane = odd_lines(n * np);
    float *v = work, *m = v + T * plane;
#pragma omp parallel
    {
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

/* Compute one tile of a map's gradient: e (from the fusion, [pixel][lde]) plus z (from the map's readers, or 0). For
 * the block's input it is stored in dx [pixel][n]. For a layer's output it is masked by f > 0, transformed into d, and
 * added to the bias gradient db. */
static void gradient_tile(const shape *s, long tile, const float *e, long lde, const float *z, long np, long n,
                          float *dx, const float *f, float *d, long plane, float *db) {
    place at = where(s, tile);
    const float *near[3][3];
    for (long i = 0; i < 3; i++)
        for (long j = 0; j < 3; j++) {
            long y = at.y / 4 + i - 1, x = at.x / 4 + j - 1;
            int inside = y >= 0 && y < rows(s) && x >= 0 && x < columns(s);
            near[i][j] = z && inside ? z + (tile + (i - 1) * columns(s) + j - 1) * T * np : 0;
        }
    for (long c = 0; c < n; c += VW) {
        vec y[T] = {{0}};
        vec sum = {0};
        if (z) gather(near, np, c, y);
        for (long i = 0; i < 4; i++)
            for (long j = 0; j < 4; j++) {
                if (at.y + i >= s->h || at.x + j >= s->w) {
                    y[4 * i + j] = (vec){0};
                    continue;
                }
                long pixel = (at.image * s->h + at.y + i) * s->w + at.x + j;
                vec g = y[4 * i + j] + load(e + pixel * lde + c, n - c);
                if (dx) store(dx + pixel * n + c, g, n - c);
                else sum += y[4 * i + j] = (vec)((bits)g & (load(f + pixel * lde + c, n - c) > 0));
            }
        if (dx) continue;
        BOTH_WAYS(output_adjoint_1d, y, 4, y, 6);
        for (long i = 0; i < T; i++) store(d + i * plane + c, y[i], n - c);
        store(db + c, load(db + c, n - c) + sum, n - c);
    }
}

/* f: from rdn_forward. e: [pixel][g0 + layers * g], the fusion's part of the gradient of f. u: from rdn_pack_backward.
 * dx: [pixel][g0]. du: for rdn_unpack. db: [layer][g]. add: add to du and db instead of overwriting them. */
void rdn_backward(const shape *s, const float *f, const float *e, const float *u, float *dx, float *du, float *db,
                  int add, float *work) {
    long n = tiles(s), ldf = reads(s, s->layers), depth = reads(s, s->layers - 1);
    long vld = v_ld(s), vplane = odd_lines(n * vld), dld = d_ld(s), dplane = odd_lines(n * dld), zp = widest(s),
         mplane = odd_lines(n * zp);
    float *v = work, *d = v + T * vplane, *z = d + T * dplane, *m = z + n * T * zp, *sums = m + T * mplane;
    enum { SPAN = 256 }; /* tiles whose v and d stay in cache while their products are summed */
#pragma omp parallel
    {
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
            for (long tile = 0; tile < n; tile += BLOCK) {
                float *sum = sums + tile / BLOCK * padded(s->g);
                memset(sum, 0, padded(s->g) * sizeof(float));
                for (long i = tile; i < min(tile + BLOCK, n); i++)
                    gradient_tile(s, i, e + start(s, map), ldf, map < s->layers ? z : 0, np, c, map ? 0 : dx,
                                  f + start(s, map), d + i * dld + (map ? slot(s, layer) : 0), dplane, sum);
            }
            if (map) {
#pragma omp single
                for (long k = 0; k < c; k++) {
                    float sum = add ? db[layer * c + k] : 0;
                    for (long i = 0; i < blocks(s); i++) sum += sums[i * padded(s->g) + k];
                    db[layer * c + k] = sum;
                }
            }
        }
#pragma omp for schedule(dynamic, 1) collapse(2)
        for (long layer = s->layers - 1; layer >= 0; layer--)
            for (long t = 0; t < T; t++) {
                long np = padded(reads(s, layer));
                float *to = du + of_gradient(s, layer) + t * s->g * np;
                for (long tile = 0; tile < n; tile += SPAN)
                    for (long col = 0; col < np; col += NR)
                        for (long r = 0; r < s->g; r += MR)
                            micro(min(MR, s->g - r), d + t * dplane + tile * dld + slot(s, layer) + r, 1, dld,
                                  v + t * vplane + tile * vld + col, vld, to + r * np + col, np, min(SPAN, n - tile),
                                  add || tile);
            }
    }
}
