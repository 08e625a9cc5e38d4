/* The kernels of hopper.py, whose docstring defines planes: convolutions of planes by Hopper's wgmma and TMA.
 *
 * A block of threads computes one tile of pixels. A producer warp copies what a step of the sum needs into a stage of
 * shared memory, and two warpgroups multiply, each half of the tile's columns. Weights are the rows of a product and
 * pixels its columns: a core matrix is 8 pixels x 8 channels, so a tap is an offset into the same pixels, and all nine
 * taps read them out of one copy, which has an edge of one pixel on all sides.
 *
 * A stage's barrier `full` completes when its bytes have arrived, `empty` when all 8 multiplying warps are done with
 * it. ROWS, COLS, SIDE, SUM_STAGES and GRADIENT_STAGES are given by hopper_layout.py. */
#include <hopper_ptx.cuh>

enum {
    CHANNELS = 64,
    SQUARE = CHANNELS * CHANNELS,
    THREADS = 384,
    PRODUCER = 8 /* warp */,
    PIXEL = 16 /* bytes of 8 channels */
};

/* Bytes of a step of `convolve`: 32 channels of the tile's pixels with their edge, and those channels' weights. */
enum {
    PITCH = (COLS + 2) * PIXEL,
    GROUP = (ROWS + 2) * PITCH,
    PIXELS = 4 * GROUP,
    TAP = CHANNELS * 32 * 2,
    STEP = PIXELS + 9 * TAP,
    TILE = CHANNELS * ROWS * COLS * 2
};

/* Bytes of a step of `correlate`: a plane's tile with its edge, and the gradients' tile without. */
enum {
    EDGED_PITCH = (SIDE + 2) * PIXEL,
    EDGED_GROUP = (SIDE + 2) * EDGED_PITCH,
    EDGED = 8 * EDGED_GROUP,
    PLAIN_PITCH = SIDE * PIXEL,
    PLAIN_GROUP = SIDE * PLAIN_PITCH,
    PLAIN = 8 * PLAIN_GROUP
};

static_assert(COLS == 16 && ROWS == 32 && SIDE == 16, "a product has 8 columns of 32 rows, or sums 16 pixels of a row");
static_assert(TILE <= STEP, "the result takes the place of a step");

/* Where the stage of a step lies, and the parity of its barriers' phase. */
template <int STAGES, int BYTES> struct Stage {
    u32 at, full, empty, parity;

    INLINE Stage(int step) {
        const u32 number = step % STAGES, barriers = shared_memory() + STAGES * BYTES;
        at = shared_memory() + number * BYTES;
        full = barriers + 8 * number;
        empty = full + 8 * STAGES;
        parity = step / STAGES & 1;
    }

    /* In the producer: wait until the stage is free, and expect bytes. */
    INLINE void fill(int step, u32 bytes) {
        if (step >= STAGES) barrier_wait(empty, parity ^ 1);
        barrier_expect(full, bytes);
    }

    INLINE static void init() {
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; i++) {
                barrier_init(Stage(i).full, 1);
                barrier_init(Stage(i).empty, PRODUCER);
            }
            barriers_ready();
        }
        sync_block();
    }

    /* In a multiplying warp: commit the products of this step, wait for those of the one before, and free its stage. */
    INLINE static void next(int step) {
        products_commit();
        products_wait<1>();
        if (step > 0 && threadIdx.x % 32 == 0) barrier_arrive(Stage(step - 1).empty);
    }
};

struct Tile {
    int image, top, left;

    INLINE Tile(int number, int across, int down, int rows, int cols) {
        image = number / (across * down);
        top = number / across % down * rows;
        left = number % across * cols;
    }
};

/* What is done with the sum z: relu(z + bias); z + bias + other; or z where other > 0, and its sum over the pixels. */
enum Kind { LAYER, RESIDUAL, GRADIENT };

struct Planes { /* the first `ones` steps have the middle tap alone, the others all nine; outputs: that have a bias */
    int ones, steps, other, result, outputs, images, across, down;
};

typedef Stage<SUM_STAGES, STEP> SumStage;

template <int KIND>
DEVICE void produce(const Map &in, const Map &other, const char *weights, const Planes &planes, const Tile &tile) {
    for (int step = 0; step < planes.steps; step++) {
        SumStage stage(step);
        const u32 bytes = step < planes.ones ? TAP : 9 * TAP;
        stage.fill(step, PIXELS + bytes);
        const int groups = (step / 2 * planes.images + tile.image) * 8 + step % 2 * 4;
        load_box(stage.at, in, (tile.left - 1) * 8, tile.top - 1, groups, stage.full);
        load_bytes(stage.at + PIXELS, weights, bytes, stage.full);
        weights += bytes;
    }
    if (KIND != LAYER) {
        SumStage stage(planes.steps);
        stage.fill(planes.steps, TILE);
        const int groups = (planes.other * planes.images + tile.image) * 8;
        load_box(stage.at, other, tile.left * 8, tile.top, groups, stage.full);
    }
}

template <int TAPS> DEVICE void add_step(float (&d)[128], int step, int warpgroup) {
    SumStage stage(step);
    barrier_wait(stage.full, stage.parity);
    const u64 w = descriptor(stage.at + PIXELS, CHANNELS * 16, 8 * 16);
    const u64 x = descriptor(stage.at + 8 * warpgroup * PIXEL, GROUP, PITCH);
    products_begin();
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++)
#pragma unroll
        for (int half = 0; half < 2; half++) { /* 16 channels each */
            const int place = TAPS == 9 ? tap : 4;
            const int pixels = place / 3 * PITCH + place % 3 * PIXEL + half * 2 * GROUP;
            multiply_256(d, further(w, tap * TAP + half * (TAP / 2)), further(x, pixels));
        }
    SumStage::next(step);
}

/* Return a result's two neighbouring pixels of one channel, from their sums, and what the other plane has there. */
template <int KIND> DEVICE u32 result_of(float first, float second, float bias, u32 other) {
    if (KIND == LAYER) return pack(positive(first + bias), positive(second + bias));
    const float f = widen(other & 0xffff), g = widen(other >> 16);
    if (KIND == RESIDUAL) return pack(first + bias + f, second + bias + g);
    return pack(f <= 0 ? 0 : first, g <= 0 ? 0 : second); /* what belongs to a NaN passes, as in torch's ReLU */
}

/* Write the result's tile to shared memory: in the place of the step after the last, where the other plane lies. */
template <int KIND> DEVICE void finish(const float (&d)[128], u32 tile, const float *bias, int outputs, float *sums) {
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32 % 4, warpgroup = thread / 128;
    const int channel = 16 * warp + lane / 4, matrix = lane / 8;
    const int group = 2 * warp + matrix % 2, row = matrix / 2, column = 8 * warpgroup + lane % 8;
    const u32 at = tile + ((group * ROWS + row) * COLS + column) * PIXEL; /* of this lane's column of a matrix */
    const float b[2] = {channel < outputs ? bias[channel] : 0, channel + 8 < outputs ? bias[channel + 8] : 0};
    float total[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < ROWS; j += 2) { /* 8 pixels of row j and of row j + 1, for 8 channels and 8 others */
        u32 v[4], other[4] = {};
        if (KIND != LAYER) load_matrices(other, at + j * COLS * PIXEL);
#pragma unroll
        for (int m = 0; m < 4; m++) {
            const int e = 4 * (j + m / 2) + 2 * (m % 2);
            v[m] = result_of<KIND>(d[e], d[e + 1], b[m % 2], other[m]);
            if (KIND == GRADIENT) total[m % 2] += widen(v[m] & 0xffff) + widen(v[m] >> 16);
        }
        store_matrices(at + j * COLS * PIXEL, v);
    }
    if (KIND == GRADIENT)
        for (int i = 0; i < 2; i++) {
            const float sum = sum_of_four_lanes(total[i]);
            if (lane % 4 == 0) sums[(blockIdx.x * 2 + warpgroup) * CHANNELS + channel + 8 * i] = sum;
        }
}

template <int KIND>
DEVICE void convolve(const Map &in, const Map &other, const Map &out, const char *weights, const float *bias,
                     float *sums, const Planes &planes) {
    const Tile tile(blockIdx.x, planes.across, planes.down, ROWS, COLS);
    const int warp = uniform(threadIdx.x / 32);
    SumStage::init();
    if (warp >= PRODUCER) {
        if (threadIdx.x == PRODUCER * 32) produce<KIND>(in, other, weights, planes, tile);
        return;
    }
    float d[128];
#pragma unroll
    for (int i = 0; i < 128; i++) d[i] = 0;
    int step = 0;
    for (; step < planes.ones; step++) add_step<1>(d, step, warp / 4);
    for (; step < planes.steps; step++) add_step<9>(d, step, warp / 4);
    products_wait<0>();
    SumStage last(step);
    if (KIND == LAYER) sync_multipliers(); /* the others may still read what lay there */
    else barrier_wait(last.full, last.parity);
    finish<KIND>(d, last.at, bias, planes.outputs, sums);
    writes_ready();
    sync_multipliers();
    if (threadIdx.x == 0)
        store_box(out, tile.left * 8, tile.top, (planes.result * planes.images + tile.image) * 8, last.at);
}

/* Write plane `result` of `out`, a tile for each block of threads.
 * in, other, out: planes [images * 8 groups, H, W, 8] one behind the other; boxes of a step, of a tile and of a tile.
 * weights: packed, see hopper_layout.py; bias: [outputs]; sums: [blocks, 2, 64]. */
#define CONVOLUTION(name, KIND)                                                                                        \
    KERNEL(THREADS)                                                                                                    \
    name(MAP in, MAP other, MAP out, const char *weights, const float *bias, float *sums, int ones, int steps,         \
         int other_plane, int result, int outputs, int images, int across, int down) {                                 \
        const Planes planes = {ones, steps, other_plane, result, outputs, images, across, down};                       \
        convolve<KIND>(in, other, out, weights, bias, sums, planes);                                                   \
    }

CONVOLUTION(layer, LAYER)
CONVOLUTION(residual, RESIDUAL)
CONVOLUTION(gradient, GRADIENT)

typedef Stage<GRADIENT_STAGES, EDGED + PLAIN> GradientStage;

/* Sum the products of gradients and planes over the stages' pixels for TAPS taps from FIRST on, of a tile's rows only
 * `ROW` to `ROW + NUMBER - 1`, and write [TAPS, 64 outputs, 64 inputs]. */
template <int FIRST, int TAPS, int ROW, int NUMBER> DEVICE void correlate(int steps, float *to) {
    float d[TAPS][32];
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++)
#pragma unroll
        for (int i = 0; i < 32; i++) d[tap][i] = 0;
    int step = 0;
    do { /* at least once: sums that are zeros if not would be copied while products write them */
        GradientStage stage(step);
        barrier_wait(stage.full, stage.parity);
        const u64 gradients = descriptor(stage.at + EDGED, 8 * PIXEL, PLAIN_GROUP);
        const u64 pixels = descriptor(stage.at, 8 * PIXEL, EDGED_GROUP);
        products_begin();
#pragma unroll
        for (int row = ROW; row < ROW + NUMBER; row++)
#pragma unroll
            for (int tap = 0; tap < TAPS; tap++) {
                const int down = (FIRST + tap) / 3, across = (FIRST + tap) % 3;
                const int place = (row + down) * EDGED_PITCH + across * PIXEL;
                multiply_64(d[tap], further(gradients, row * PLAIN_PITCH), further(pixels, place));
            }
        GradientStage::next(step);
    } while (++step < steps);
    products_wait<0>();
    const int lane = threadIdx.x % 32, output = threadIdx.x / 32 % 4 * 16 + lane / 4;
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++)
#pragma unroll
        for (int e = 0; e < 32; e += 2) {
            const int input = 8 * (e / 4) + 2 * (lane % 4);
            float *at = to + (tap * CHANNELS + output + 8 * (e / 2 % 2)) * CHANNELS + input;
            at[0] = d[tap][e], at[1] = d[tap][e + 1];
        }
}

struct Span { /* of tiles that a block of threads sums */
    int images, across, down, begin, end;
};

DEVICE void produce_pairs(const Map &gradients, const Map &planes, const int *pair, const Span &span) {
    for (int i = span.begin; i < span.end; i++) {
        const int step = i - span.begin;
        const Tile tile(i, span.across, span.down, SIDE, SIDE);
        GradientStage stage(step);
        stage.fill(step, EDGED + PLAIN);
        const int of_planes = (pair[1] * span.images + tile.image) * 8;
        const int of_gradients = (pair[0] * span.images + tile.image) * 8;
        load_box(stage.at, planes, (tile.left - 1) * 8, tile.top - 1, of_planes, stage.full);
        load_box(stage.at + EDGED, gradients, tile.left * 8, tile.top, of_gradients, stage.full);
    }
}

/* Write partial [splits, pairs, 9, 64, 64], or of the fusion [splits, 2, pairs, 64, 64]; grid: pairs x splits.
 * gradients, planes: as in `convolve`, with boxes of a tile without and with an edge. pairs: of their planes. */
template <bool FUSION>
DEVICE void sum_pairs(const Map &gradients, const Map &planes, const int *pairs, float *partial, const Span &span) {
    const int warp = threadIdx.x / 32, steps = span.end - span.begin;
    const long long before = (long long)blockIdx.y * gridDim.x; /* pairs of the splits before */
    GradientStage::init();
    if (warp >= PRODUCER) {
        lower_registers<24>(); /* 168 a thread were allocated */
        if (threadIdx.x == PRODUCER * 32) produce_pairs(gradients, planes, pairs + 2 * blockIdx.x, span);
        return;
    }
    raise_registers<240>();
    if (FUSION) { /* one tap, the middle one: each warpgroup sums half of the pixels */
        float *to = partial + (2 * before + blockIdx.x) * SQUARE;
        if (warp < PRODUCER / 2) correlate<4, 1, 0, SIDE / 2>(steps, to);
        else correlate<4, 1, SIDE / 2, SIDE / 2>(steps, to + gridDim.x * SQUARE);
    } else {
        float *to = partial + (before + blockIdx.x) * 9 * SQUARE;
        if (warp < PRODUCER / 2) correlate<0, 5, 0, SIDE>(steps, to);
        else correlate<5, 4, 0, SIDE>(steps, to + 5 * SQUARE);
    }
}

#define WEIGHTS(name, FUSION)                                                                                          \
    KERNEL(THREADS)                                                                                                    \
    name(MAP gradients, MAP planes, const int *pairs, float *partial, int images, int across, int down, int tiles,     \
         int number) {                                                                                                 \
        const int begin = blockIdx.y * number, end = begin + number;                                                   \
        const Span span = {images, across, down, begin, end < tiles ? end : tiles};                                    \
        sum_pairs<FUSION>(gradients, planes, pairs, partial, span);                                                    \
    }

WEIGHTS(layer_weights, false)
WEIGHTS(fusion_weights, true)
