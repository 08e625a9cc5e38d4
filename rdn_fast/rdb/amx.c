/* The residual dense block in bf16 as products of matrix tiles (Intel AMX), summed in float32 and rounded once.
 *
 * A tile has 16 rows of 64 bytes. c += a b is one instruction: a: 16 rows x 32 bf16, b: 32 x 16 bf16 in pairs of rows
 * ([16][16][2]), c: 16 x 16 float32. Two tiles of a by two of b make four sums: a tile that is loaded is used twice.
 *
 * Maps are channels-last, [pixel][channel], with zeros around every image, so that a tap of a 3x3 convolution is an
 * offset: 16 pixels are the rows of an a, 32 of their channels its columns. Image row h is zeros, and so are columns w
 * to `pitch`; they border the next row and the next image too. All maps of a block share one buffer: a layer reads
 * channels 0..r and writes r..r+g in place. Where 32 does not divide r, the last r % 32 channels are read from `tail`,
 * [pixel][32] filled up with zeros, since the following channels of the buffer are being written meanwhile.
 *
 * The backward pass is a dense block in reverse, with buffer d: the output's gradient, then the gradients before each
 * layer's ReLU, the last layer's first. A map's gradient is one sum over the fusion's taps (1) and the layers' (9). The
 * weights' gradients are sums over pixels, 32 of a unit at a time: a is d transposed, [channel][pixel], offset by the
 * tap; b is f in pairs of pixels, [32 channels][pixel pair][channel][2].
 *
 * The same source is built twice: with AMX's intrinsics, and in plain C (any processor, slow), which tests the rest.
 * Results depend neither on the number of threads nor on how the batch is divided into calls.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;
typedef float vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t bits __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t half __attribute__((vector_size(32), aligned(2)));
#define INLINE static inline __attribute__((always_inline))

enum { N = 16, K = 32, TILE = N * K, PANEL = 2 * N }; /* columns of c, depth of a product, elements of a and b */
enum { UNIT = 32, STRIP = 8 };                        /* pixels of two a; units of which a thread keeps the sums */
enum { DEEP = 8 }; /* blocks of K channels that a convolution of one tap sums at a time */

/* The tile operations. Sums are tiles 0 to 3, a: 4 and 5, b: 6 and 7. */
#if defined(__AMX_BF16__) && !defined(PLAIN_TILES)
#include <errno.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
static const struct {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} layout = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

/* Ask the kernel for the tiles, for all threads of this process and for processes that it forks. 1: granted. 0: this is
 * the build in plain C. Less: minus the errno of the refusal. */
int rdn_tiles(void) { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) ? -errno : 1; }
/* gcc's intrinsics do not say which memory they read. */
#define FENCE() ({ __asm__ volatile("" ::: "memory"); })
INLINE void tiles_begin(void) { FENCE(), _tile_loadconfig(&layout); }
INLINE void tiles_end(void) { _tile_release(); }
#define ZERO(t) ({ _tile_zero(t); })
#define LOAD(t, from, bytes) ({ _tile_loadd(t, from, bytes); })
#define STORE(t, to, bytes) ({ _tile_stored(t, to, bytes); })
#define ADD_PRODUCT(c, a, b) ({ _tile_dpbf16ps(c, a, b); })
#else
static _Thread_local uint32_t tile[8][16][16];
int rdn_tiles(void) { return 0; }
#define FENCE()
INLINE void tiles_begin(void) {}
INLINE void tiles_end(void) {}
#define ZERO(t) memset(tile[t], 0, sizeof tile[t])
#define LOAD(t, from, bytes) plain_load(tile[t], from, bytes)
#define STORE(t, to, bytes) plain_store(tile[t], to, bytes)
#define ADD_PRODUCT(c, a, b) plain_product(tile[c], tile[a], tile[b])

static __attribute__((noinline)) void plain_load(uint32_t t[16][16], const void *from, long bytes) {
    for (long i = 0; i < 16; i++) memcpy(t[i], (const char *)from + i * bytes, 64);
}

static __attribute__((noinline)) void plain_store(uint32_t t[16][16], void *to, long bytes) {
    for (long i = 0; i < 16; i++) memcpy((char *)to + i * bytes, t[i], 64);
}

/* As the processor does it: first and second of the pairs are summed apart. It takes subnormal numbers as 0. */
static __attribute__((noinline)) void plain_product(uint32_t c[16][16], uint32_t a[16][16], uint32_t b[16][16]) {
    for (int i = 0; i < 16; i++) {
        vec first = {0}, second = {0};
        for (int k = 0; k < 16; k++) {
            bits pair = a[i][k] - (bits){0}, row = *(bits *)b[k];
            first += (vec)(pair << 16) * (vec)(row << 16);
            second += (vec)(pair & 0xffff0000) * (vec)(row & 0xffff0000);
        }
        *(vec *)c[i] += first + second;
    }
}
#endif

typedef struct {
    long batch, h, w, g0, g, layers;
} shape;

INLINE long min(long a, long b) { return a < b ? a : b; }
INLINE long up(long n, long to) { return (n + to - 1) / to * to; }
INLINE long blocks(long n) { return (n + K - 1) / K; }

/* Channels of a buffer: whole cache lines, and no multiple of four of them, which would use a part of the cache. */
INLINE long lines(long n) { return up(n, 32) % 128 ? up(n, 32) : up(n, 32) + 32; }

/* Channels. Layers count from 0. Map 0 is the block's input, map j + 1 is layer j's output. */
INLINE long reads(const shape *s, long layer) { return s->g0 + layer * s->g; }
INLINE long width(const shape *s, long map) { return map ? s->g : s->g0; }
INLINE long start(const shape *s, long map) { return map ? reads(s, map - 1) : 0; }
INLINE long f_ld(const shape *s) { return lines(reads(s, s->layers)); }
INLINE long slot(const shape *s, long layer) { return up(s->g0, K) + (s->layers - 1 - layer) * s->g; } /* in d */
INLINE long d_ld(const shape *s) { return lines(slot(s, -1)); }

/* Pixels. An image takes `area` of them, and `lead` more are before the first image and after the last. */
INLINE long pitch(const shape *s) { return up(s->w + 1, 2); } /* even: pairs of pixels */
INLINE long area(const shape *s) { return up((s->h + 1) * pitch(s), UNIT); }
INLINE long lead(const shape *s) { return up(pitch(s) + 1, UNIT); }
INLINE long pixels(const shape *s) { return s->batch * area(s) + 2 * lead(s); }

/* Units of pixels: the rows' own, where they are whole units, else all of an image, zeros and all. */
INLINE int by_rows(const shape *s) { return s->w % UNIT == 0; }
INLINE long units(const shape *s) { return s->batch * (by_rows(s) ? s->h * s->w : area(s)) / UNIT; }

typedef struct {
    long n, pixel[STRIP]; /* first pixels of n units */
} strip;

INLINE strip strip_at(const shape *s, long unit) {
    strip t = {min(STRIP, units(s) - unit), {0}};
    long row = unit * UNIT / s->w, x = unit * UNIT % s->w, image = row / s->h, y = row % s->h;
    for (long i = 0; i < t.n; i++) {
        t.pixel[i] = by_rows(s) ? image * area(s) + y * pitch(s) + x : (unit + i) * UNIT;
        if ((x += UNIT) == s->w) x = 0, y++;
        if (y == s->h) y = 0, image++;
    }
    return t;
}

typedef struct {
    long image, y, x;
} place;

INLINE place where(const shape *s, long pixel) {
    return (place){pixel / area(s), pixel % area(s) / pitch(s), pixel % area(s) % pitch(s)};
}

INLINE void next(const shape *s, place *at) {
    if (++at->x == pitch(s)) at->x = 0, at->y++;
}

INLINE int inside(const shape *s, place at) { return at.y < s->h && at.x < s->w; }
INLINE long packed(const shape *s, place at) { return (at.image * s->h + at.y) * s->w + at.x; } /* without zeros */

/* Offset of a tap in pixels, of 9 or of 1. */
INLINE long shift(const shape *s, int taps, int tap) { return taps == 1 ? 0 : (tap / 3 - 1) * pitch(s) + tap % 3 - 1; }

INLINE vec load(const bf16 *from, long n) {
    half v = {0};
    if (n >= N) v = *(const half *)from;
    else memcpy(&v, from, n * sizeof(bf16));
    return (vec)(__builtin_convertvector(v, bits) << 16);
}

INLINE void store(bf16 *to, vec v, long n) { /* rounds to nearest even; NaN stays NaN */
    bits b = (bits)v, rounded = b + 0x7fff + (b >> 16 & 1), nan = (bits)(v != v);
    half h = __builtin_convertvector(((rounded & ~nan) | ((b | 0x400000) & nan)) >> 16, half);
    if (n >= N) *(half *)to = h;
    else memcpy(to, &h, n * sizeof(bf16));
}

/* Weights [columns][taps][depth] are packed as [panel of 32 or 16 columns][block of K][tap][panel's tiles][TILE]. */
INLINE long packed_size(long columns, long depth, int taps) { return up(columns, N) * blocks(depth) * taps * K; }

INLINE bf16 *packed_tile(bf16 *u, long columns, long depth, int taps, long column, long block, int tap) {
    long panel = column / PANEL * PANEL, wide = columns - panel > N ? 2 : 1;
    return u + (panel * blocks(depth) * K + (block * wide * TILE)) * taps + tap * wide * TILE + (column - panel) * K;
}

/* What a convolution reads: `channels` of maps [pixel][ld], the last channels % K of them from tail [pixel][K]. */
typedef struct {
    const bf16 *maps;
    long ld, channels;
    const bf16 *tail;
    int taps;
    const bf16 *u; /* packed weights */
} operand;

/* What becomes of the sums of a convolution, in this order: all pointers may be NULL. */
typedef struct {
    const bf16 *bias;     /* [column], added */
    const bf16 *residual; /* [pixel][residual_ld], added */
    long residual_ld;
    int relu;
    const bf16 *gate; /* [pixel][gate_ld], a ReLU's output: where it is 0, the result is 0 */
    long gate_ld;
    bf16 *to; /* [pixel][ld], or without the zeros around images if `bare` */
    long ld;
    int bare;
} epilogue;

/* Load the sums, tiles 0 to 3, from c [16 high][ld], [16 wide]; high, wide: 1 or 2 tiles. Or begin with zeros. */
INLINE void begin_sums(int high, int wide, const float *c, long ld, int add) {
    const long row = ld * sizeof(float);
    FENCE();
    if (add) {
        LOAD(0, c, row);
        if (wide > 1) LOAD(1, c + N, row);
        if (high > 1) LOAD(2, c + N * ld, row);
        if (high > 1 && wide > 1) LOAD(3, c + N * ld + N, row);
    } else {
        ZERO(0), ZERO(1), ZERO(2), ZERO(3);
    }
}

INLINE void end_sums(int high, int wide, float *c, long ld) {
    const long row = ld * sizeof(float);
    STORE(0, c, row);
    if (wide > 1) STORE(1, c + N, row);
    if (high > 1) STORE(2, c + N * ld, row);
    if (high > 1 && wide > 1) STORE(3, c + N * ld + N, row);
    FENCE();
}

/* Sums += a: 16 high rows of a_bytes, @ b: 1 or 2 tiles, `next` after each other. */
INLINE void add_products(int high, int wide, const bf16 *a, long a_bytes, const bf16 *b, long b_bytes, long next) {
    LOAD(6, b, b_bytes), LOAD(4, a, a_bytes), ADD_PRODUCT(0, 4, 6);
    if (wide > 1) LOAD(7, b + next, b_bytes), ADD_PRODUCT(1, 4, 7);
    if (high > 1) LOAD(5, (const bf16 *)((const char *)a + N * a_bytes), a_bytes), ADD_PRODUCT(2, 5, 6);
    if (high > 1 && wide > 1) ADD_PRODUCT(3, 5, 7);
}

/* c[32][32] (+)= 32 pixels of a [pixel][ld] @ u, n blocks of K channels. wide: 1 or 2 tiles of columns. */
INLINE void block(int wide, const shape *s, const bf16 *a, long ld, int taps, const bf16 *u, long n, float *c,
                  int add) {
    begin_sums(2, wide, c, PANEL, add);
    for (long k = 0; k < n; k++)
        for (int tap = 0; tap < taps; tap++, u += wide * TILE)
            add_products(2, wide, a + k * K + shift(s, taps, tap) * ld, ld * sizeof(bf16), u, 2 * K, TILE);
    end_sums(2, wide, c, PANEL);
}

/* Sums of a strip for the panel of columns at `column`: c [unit][32][32] (+)= */
static void sum_strip(const shape *s, const operand *o, long columns, long column, const strip *t, float *c, int add) {
    long whole = o->channels / K, group = o->taps == 1 ? DEEP : 1;
    for (long k = 0, n; k < blocks(o->channels); k += n, add = 1) {
        const bf16 *a = k < whole ? o->maps + k * K : o->tail;
        const bf16 *u = packed_tile((bf16 *)o->u, columns, o->channels, o->taps, column, k, 0);
        long ld = k < whole ? o->ld : K;
        n = k < whole ? min(group, whole - k) : 1;
        for (long i = 0; i < t->n; i++) {
            const bf16 *from = a + t->pixel[i] * ld;
            if (columns - column > N) block(2, s, from, ld, o->taps, u, n, c + i * UNIT * PANEL, add);
            else block(1, s, from, ld, o->taps, u, n, c + i * UNIT * PANEL, add);
        }
    }
}

/* c [32][32]: the sums of the unit at `pixel` -> n of its channels, from `column` on */
static void finish(const shape *s, const epilogue *e, long pixel, long column, long n, const float *c) {
    place at = where(s, pixel);
    for (long i = pixel; i < pixel + UNIT; i++, c += PANEL, next(s, &at)) {
        if (!inside(s, at)) continue;
        bf16 *to = e->to + (e->bare ? packed(s, at) : i) * e->ld + column;
        for (long k = 0; k < n; k += N) {
            vec v = *(const vec *)(c + k);
            if (e->bias) v += load(e->bias + column + k, n - k);
            if (e->residual) v += load(e->residual + i * e->residual_ld + column + k, n - k);
            if (e->relu) v = (vec)((bits)v & ~(bits)(v < 0)); /* keeps NaN, as torch's relu does */
            if (e->gate) v = (vec)((bits)v & (bits)(load(e->gate + i * e->gate_ld + column + k, n - k) != 0));
            store(to + k, v, n - k);
        }
    }
}

static void convolve(const shape *s, const operand *operands, int n, const epilogue *e, long columns, const strip *t) {
    float c[STRIP * UNIT * PANEL] __attribute__((aligned(64)));
    for (long column = 0; column < columns; column += PANEL) {
        for (int i = 0; i < n; i++)
            if (operands[i].channels) sum_strip(s, operands + i, columns, column, t, c, i);
        for (long i = 0; i < t->n; i++)
            finish(s, e, t->pixel[i], column, min(PANEL, columns - column), c + i * UNIT * PANEL);
    }
}

/* Copy the last channels % K of maps [pixel][ld] to tail [pixel][K], zeros after them. */
static void write_tail(const bf16 *maps, long ld, long channels, bf16 *tail, const strip *t) {
    long n = channels % K;
    for (long unit = 0; n && unit < t->n; unit++)
        for (long i = t->pixel[unit]; i < t->pixel[unit] + UNIT; i++) {
            memcpy(tail + i * K, maps + i * ld + channels - n, n * sizeof(bf16));
            memset(tail + i * K + n, 0, (K - n) * sizeof(bf16));
        }
}

/* Zero the pixels around the images of a buffer [pixel][ld]. Called by all threads together, as what follows. */
static void clear_borders(const shape *s, bf16 *maps, long ld) {
#pragma omp for schedule(static)
    for (long image = -1; image < s->batch; image++) {
        long end = (image + 1) * area(s), row = image < 0 ? -1 - pitch(s) : image * area(s);
        for (long y = 0; image >= 0 && y < s->h; y++, row += pitch(s))
            memset(maps + (row + s->w) * ld, 0, (pitch(s) - s->w) * ld * sizeof(bf16));
        memset(maps + row * ld, 0, (end - row) * ld * sizeof(bf16));
    }
}

/* from: [image][h][w][channels], without zeros around -> the first channels of maps; fill up to a multiple of K. */
static void enter(const shape *s, const bf16 *from, long channels, bf16 *maps, long ld) {
#pragma omp for schedule(static) collapse(2)
    for (long image = 0; image < s->batch; image++)
        for (long y = 0; y < s->h; y++)
            for (long x = 0; x < s->w; x++) {
                bf16 *to = maps + (image * area(s) + y * pitch(s) + x) * ld;
                memcpy(to, from + packed(s, (place){image, y, x}) * channels, channels * sizeof(bf16));
                memset(to + channels, 0, (up(channels, K) - channels) * sizeof(bf16));
            }
}

/* Packed weights: forward, each layer's, then the fusion's; backward, for each map's gradient the fusion's, then the
 * layers'. */
static long of_layer(const shape *s, long layer) {
    long n = 0;
    for (long j = 0; j < layer; j++) n += packed_size(s->g, reads(s, j), 9);
    return n;
}

static long of_map(const shape *s, long map) {
    long n = 0;
    for (long m = 0; m < map; m++)
        n += packed_size(width(s, m), s->g0, 1) + packed_size(width(s, m), (s->layers - m) * s->g, 9);
    return n;
}

long rdn_packed(const shape *s, long backward) {
    return backward ? of_map(s, s->layers + 1) : of_layer(s, s->layers) + packed_size(s->g0, reads(s, s->layers), 1);
}

/* bf16 of the buffer of all maps */
long rdn_maps(const shape *s) { return pixels(s) * f_ld(s); }

/* w: [columns][taps][depth] -> u. Called by all threads together. */
static void pack(const bf16 *w, long columns, long depth, int taps, bf16 *u) {
#pragma omp for schedule(static) collapse(2) nowait
    for (long column = 0; column < up(columns, N); column += N)
        for (long k = 0; k < depth; k += K)
            for (int tap = 0; tap < taps; tap++) {
                uint32_t rows[N][N] = {{0}}, turned[N][N]; /* pairs */
                for (long i = 0; i < min(N, columns - column); i++)
                    memcpy(rows[i], w + ((column + i) * taps + tap) * depth + k, min(K, depth - k) * sizeof(bf16));
                for (int i = 0; i < N; i++)
                    for (int j = 0; j < N; j++) turned[i][j] = rows[j][i];
                memcpy(packed_tile(u, columns, depth, taps, column, k / K, tap), turned, sizeof turned);
            }
}

/* w[layer]: [g][3][3][channels in], fuse: [g0][g0 + layers * g] -> u, weights for the forward pass */
void rdn_pack_forward(const shape *s, const bf16 *const *w, const bf16 *fuse, bf16 *u) {
#pragma omp parallel
    {
        for (long layer = 0; layer < s->layers; layer++)
            pack(w[layer], s->g, reads(s, layer), 9, u + of_layer(s, layer));
        pack(fuse, s->g0, reads(s, s->layers), 1, u + of_layer(s, s->layers));
    }
}

/* x: [pixel][g0], without zeros around. u: from rdn_pack_forward. bias[layer]: [g]. fuse_bias: [g0] -> f: all maps, of
 * rdn_maps elements for the whole batch, of which this call's begin at `image`; y: [pixel][g0] */
void rdn_forward(const shape *s, const bf16 *x, bf16 *f, long image, const bf16 *u, const bf16 *const *bias,
                 const bf16 *fuse_bias, bf16 *y, bf16 *work) {
    long ld = f_ld(s), n = units(s);
    bf16 *tail[2] = {work + lead(s) * K, work + (lead(s) + pixels(s)) * K};
    f += (lead(s) + image * area(s)) * ld;
#pragma omp parallel
    {
        tiles_begin();
        clear_borders(s, f, ld), clear_borders(s, tail[0], K), clear_borders(s, tail[1], K);
        enter(s, x, s->g0, f, ld);
#pragma omp for schedule(static)
        for (long unit = 0; unit < n; unit += STRIP) {
            strip t = strip_at(s, unit);
            write_tail(f, ld, s->g0, tail[0], &t);
        }
        for (long layer = 0; layer <= s->layers; layer++) { /* the last is the fusion */
            int fusion = layer == s->layers;
            long c = reads(s, layer);
            operand in = {f, ld, c, tail[layer & 1], fusion ? 1 : 9, u + of_layer(s, layer)};
            epilogue out = {.bias = fuse_bias, .residual = f, .residual_ld = ld, .to = y, .ld = s->g0, .bare = 1};
            if (!fusion) out = (epilogue){.bias = bias[layer], .relu = 1, .to = f + c, .ld = ld};
#pragma omp for schedule(static)
            for (long unit = 0; unit < n; unit += STRIP) {
                strip t = strip_at(s, unit);
                convolve(s, &in, 1, &out, fusion ? s->g0 : s->g, &t);
                if (!fusion) write_tail(f, ld, c + s->g, tail[(layer + 1) & 1], &t);
            }
        }
        tiles_end();
    }
}

/* Gradients of weights are float32: each layer's [g][9][channels in], the fusion's [g0][channels], then those of all
 * biases, [g0 + layers * g][N], of which column 0 counts. Rows and columns are rounded up to whole tiles. */
static long of_gradient(const shape *s, long layer) {
    long n = 0;
    for (long j = 0; j < layer; j++) n += up(s->g, N) * 9 * up(reads(s, j), N);
    return n;
}

INLINE long of_biases(const shape *s) { return of_gradient(s, s->layers) + up(s->g0, N) * up(reads(s, s->layers), N); }
INLINE long turned_row(const shape *s, long layer) { return up(s->g0, N) + layer * s->g; } /* of d transposed */
INLINE long turned_rows(const shape *s) { return up(turned_row(s, s->layers), N); }
long rdn_gradients(const shape *s) { return of_biases(s) + turned_rows(s) * N; }

/* bf16 of scratch memory: the two tails; for rdn_backward (images: not 0) also d, d transposed, and f in pairs of
 * pixels. */
long rdn_workspace(const shape *s, long images) {
    long a_pixel = d_ld(s) + turned_rows(s) + N + blocks(reads(s, s->layers)) * K;
    return pixels(s) * (2 * K + (images ? a_pixel : 0));
}

/* Row k of the weights of a map's gradient, for one tap: pointer to the map's channels, or NULL after the last row.
 * taps 1: the fusion. taps 9: the layers that read the map, the last first, turned by 180 degrees. */
static const bf16 *weight_row(const shape *s, const bf16 *const *w, const bf16 *fuse, long map, long k, int taps,
                              int tap) {
    if (k >= (taps == 1 ? s->g0 : (s->layers - map) * s->g)) return 0;
    if (taps == 1) return fuse + k * reads(s, s->layers) + start(s, map);
    long layer = s->layers - 1 - k / s->g;
    return w[layer] + (k % s->g * 9 + 8 - tap) * reads(s, layer) + start(s, map);
}

/* Two rows of n values -> n pairs; a row may be NULL, for zeros. */
INLINE void pair_up(const bf16 *a, const bf16 *b, long n, uint32_t *pairs) {
    for (long i = 0; i < n; i++) pairs[i] = (a ? a[i] : 0) | (uint32_t)(b ? b[i] : 0) << 16;
}

/* w, fuse -> u, weights for the maps' gradients */
void rdn_pack_backward(const shape *s, const bf16 *const *w, const bf16 *fuse, bf16 *u) {
#pragma omp parallel
    for (long map = 0; map <= s->layers; map++) {
        bf16 *to = u + of_map(s, map);
        long columns = width(s, map);
        for (int taps = 1; taps <= 9; taps += 8) {
            long depth = taps == 1 ? s->g0 : (s->layers - map) * s->g;
#pragma omp for schedule(static) collapse(2) nowait
            for (long column = 0; column < up(columns, N); column += N)
                for (long k = 0; k < depth; k += K)
                    for (int tap = 0; tap < taps; tap++) {
                        uint32_t rows[N][N] = {{0}};
                        for (long i = 0; i < N; i++) {
                            const bf16 *a = weight_row(s, w, fuse, map, k + 2 * i, taps, tap),
                                       *b = weight_row(s, w, fuse, map, k + 2 * i + 1, taps, tap);
                            if (a) pair_up(a + column, b ? b + column : 0, min(N, columns - column), rows[i]);
                        }
                        memcpy(packed_tile(to, columns, depth, taps, column, k / K, tap), rows, sizeof rows);
                    }
            to += packed_size(columns, depth, taps);
        }
    }
}

/* A strip of maps [pixel][ld], n channels -> turned [channel][ldt] */
static void turn(const bf16 *maps, long ld, long n, const strip *t, bf16 *turned, long ldt) {
    for (long unit = 0; unit < t->n; unit++)
        for (long c = 0; c < n; c += N) {
            uint32_t rows[UNIT / 2][N] = {{0}}, column[UNIT / 2];
            for (long i = 0; i < UNIT / 2; i++) {
                const bf16 *from = maps + (t->pixel[unit] + 2 * i) * ld + c;
                pair_up(from, from + ld, min(N, n - c), rows[i]);
            }
            for (long k = 0; k < min(N, n - c); k++) {
                for (long i = 0; i < UNIT / 2; i++) column[i] = rows[i][k];
                memcpy(turned + (c + k) * ldt + t->pixel[unit], column, sizeof column);
            }
        }
}

/* f -> pairs [block of K channels][pixel pair][K][2] */
static void pair_pixels(const shape *s, const bf16 *f, bf16 *pairs) {
    long n = s->batch * area(s), ld = f_ld(s);
#pragma omp for schedule(static) collapse(2)
    for (long pixel = 0; pixel < n; pixel += 2)
        for (long k = 0; k < blocks(reads(s, s->layers)); k++)
            pair_up(f + pixel * ld + k * K, f + (pixel + 1) * ld + k * K, K, (uint32_t *)(pairs + (k * n + pixel) * K));
}

static const bf16 ones[TILE] = {[0 ... TILE - 1] = 0x3f80};

/* Sums over a strip's pixels: du [16 high][ldu], [16 wide] (+)= a [row][lda] @ b [pixel pair][K][2], NULL: ones. */
INLINE void gradient(int high, int wide, const strip *t, const bf16 *a, long lda, const bf16 *b, float *du, long ldu,
                     int add) {
    begin_sums(high, wide, du, ldu, add);
    for (long i = 0; i < t->n; i++) {
        const bf16 *from = a + t->pixel[i];
        if (b) add_products(high, wide, from, lda * sizeof(bf16), b + t->pixel[i] * K, 4 * K, 2 * N);
        else add_products(high, wide, from, lda * sizeof(bf16), ones, 2 * K, 0);
    }
    end_sums(high, wide, du, ldu);
}

/* Gradients of a convolution's weights, du [rows][taps][up(columns, N)] (+)=, from d transposed [row][lda] and f in
 * pairs of pixels. Called by all threads together. */
static void weight_gradients(const shape *s, const bf16 *a, long lda, const bf16 *pairs, long rows, long columns,
                             int taps, float *du, int add) {
    long ld = up(columns, N), plane = s->batch * area(s) * K;
#pragma omp for schedule(dynamic, 1) collapse(2) nowait
    for (long row = 0; row < rows; row += 2 * N)
        for (long column = 0; column < columns; column += PANEL)
            for (long unit = 0; unit < units(s); unit += STRIP) {
                const strip t = strip_at(s, unit);
                const bf16 *b = pairs + column / K * plane;
                int more = add || unit, high = rows - row > N, wide = columns - column > N;
                for (int tap = 0; tap < taps; tap++) {
                    const bf16 *from = a + row * lda - shift(s, taps, tap);
                    float *to = du + (row * taps + tap) * ld + column;
                    if (high && wide) gradient(2, 2, &t, from, lda, b, to, taps * ld, more);
                    else if (high) gradient(2, 1, &t, from, lda, b, to, taps * ld, more);
                    else if (wide) gradient(1, 2, &t, from, lda, b, to, taps * ld, more);
                    else gradient(1, 1, &t, from, lda, b, to, taps * ld, more);
                }
            }
}

/* f: from rdn_forward, this call's maps beginning at `image`. gy: [pixel][g0]. u: from rdn_pack_backward -> dx:
 * [pixel][g0]; du: rdn_gradients floats, for rdn_unpack. add: add to du instead of overwriting it. images: not used,
 * all are computed at once; winograd.c takes a few at a time. */
void rdn_backward(const shape *s, long images, const bf16 *f, long image, const bf16 *gy, const bf16 *u, bf16 *dx,
                  float *du, long add, bf16 *work) {
    (void)images;
    long ldf = f_ld(s), ld = d_ld(s), lda = pixels(s), n = units(s), base = slot(s, s->layers - 1);
    bf16 *tail[2] = {work + lead(s) * K, work + (lead(s) + pixels(s)) * K};
    bf16 *d = work + pixels(s) * 2 * K + lead(s) * ld, *a = work + pixels(s) * (2 * K + ld) + lead(s);
    bf16 *pairs = work + pixels(s) * (2 * K + ld + turned_rows(s) + N);
    f += (lead(s) + image * area(s)) * ldf;
#pragma omp parallel
    {
        tiles_begin();
#pragma omp for schedule(static)
        for (long row = 0; row < turned_rows(s) + N; row++) memset(a + row * lda - lead(s), 0, lda * sizeof(bf16));
        clear_borders(s, d, ld), clear_borders(s, tail[0], K), clear_borders(s, tail[1], K);
        enter(s, gy, s->g0, d, ld);
        pair_pixels(s, f, pairs);
        for (long map = s->layers; map >= 0; map--) {
            long layer = map - 1, c = width(s, map), depth = (s->layers - map) * s->g;
            operand in[2] = {{d, ld, up(s->g0, K), 0, 1, u + of_map(s, map)},
                             {d + base, ld, depth, tail[map & 1], 9, u + of_map(s, map) + packed_size(c, s->g0, 1)}};
            bf16 *own = d + (map ? slot(s, layer) : 0);
            epilogue out = {.residual = d, .residual_ld = ld, .to = dx, .ld = c, .bare = 1};
            if (map) out = (epilogue){.gate = f + start(s, map), .gate_ld = ldf, .to = own, .ld = ld};
#pragma omp for schedule(static)
            for (long unit = 0; unit < n; unit += STRIP) {
                strip t = strip_at(s, unit);
                convolve(s, in, 2, &out, c, &t);
                turn(own, ld, c, &t, a + (map ? turned_row(s, layer) : 0) * lda, lda);
                if (map) write_tail(d + base, ld, depth + c, tail[layer & 1], &t);
            }
        }
        for (long layer = s->layers - 1; layer >= 0; layer--)
            weight_gradients(s, a + turned_row(s, layer) * lda, lda, pairs, s->g, reads(s, layer), 9,
                             du + of_gradient(s, layer), add);
        weight_gradients(s, a, lda, pairs, s->g0, reads(s, s->layers), 1, du + of_gradient(s, s->layers), add);
#pragma omp for schedule(dynamic, 1)
        for (long row = 0; row < turned_rows(s); row += N)
            for (long unit = 0; unit < n; unit += STRIP) {
                const strip t = strip_at(s, unit);
                gradient(1, 1, &t, a + row * lda, lda, 0, du + of_biases(s) + row * N, N, add || unit);
            }
        tiles_end();
    }
}

/* du -> dw[layer]: [g][3][3][channels in], db[layer]: [g], dfuse: [g0][channels], dfuse_b: [g0] */
void rdn_unpack(const shape *s, const float *du, bf16 *const *dw, bf16 *const *db, bf16 *dfuse, bf16 *dfuse_b) {
    for (long layer = 0; layer <= s->layers; layer++) { /* the last is the fusion */
        int fusion = layer == s->layers, taps = fusion ? 1 : 9;
        long rows = fusion ? s->g0 : s->g, columns = reads(s, layer);
        const float *from = du + of_gradient(s, layer);
        const float *biases = du + of_biases(s) + (fusion ? 0 : turned_row(s, layer)) * N;
#pragma omp parallel for schedule(static)
        for (long row = 0; row < rows; row++) {
            store((fusion ? dfuse_b : db[layer]) + row, (vec){biases[row * N]}, 1);
            for (long tap = row * taps; tap < (row + 1) * taps; tap++)
                for (long k = 0; k < columns; k += N)
                    store((fusion ? dfuse : dw[layer]) + tap * columns + k, *(vec *)(from + tap * up(columns, N) + k),
                          columns - k);
        }
    }
}
