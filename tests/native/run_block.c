/* `run_block IN OUT`: one forward and backward pass of winograd.c on any processor, an emulated one too.
 *
 * IN: six longs as in `shape`, then floats: x [pixel][g0], each layer's weights [g][3][3][channels in], each layer's
 * bias [g], the fusion's weights [g0][channels] and bias [g0], the output's gradient [pixel][g0].
 * OUT: floats: the output, then the gradients of x and of all parameters in the order of IN.
 * Each image is computed by itself. Memory that is written later begins as NaN.
 */
#include "winograd.c"

#include <stdio.h>
#include <stdlib.h>

static float *memory(long n) {
    return memset(aligned_alloc(64, up(n * sizeof(float) + 1, 64)), 0xff, n * sizeof(float));
}

static float *given(FILE *in, long n) {
    float *values = memory(n);
    if (fread(values, sizeof(float), n, in) != (size_t)n) exit(3);
    return values;
}

static void write(FILE *out, const float *values, long n) {
    if (fwrite(values, sizeof(float), n, out) != (size_t)n) exit(4);
}

int main(int count, char **names) {
    enum { LAYERS = 16 };
    shape s;
    FILE *in = count == 3 ? fopen(names[1], "rb") : NULL;
    if (!in || fread(&s, sizeof s, 1, in) != 1 || s.layers > LAYERS) return 2;
    const long pixels = s.h * s.w, channels = reads(&s, s.layers);
    const float *w[LAYERS], *b[LAYERS], *x = given(in, s.batch * pixels * s.g0);
    for (long j = 0; j < s.layers; j++) w[j] = given(in, s.g * 9 * reads(&s, j));
    for (long j = 0; j < s.layers; j++) b[j] = given(in, s.g);
    const float *fuse = given(in, s.g0 * channels), *fuse_b = given(in, s.g0), *gy = given(in, s.batch * pixels * s.g0);

    float *y = memory(s.batch * pixels * s.g0), *f = memory(rdn_maps(&s)), *u = memory(rdn_packed(&s, 0));
    shape one = s;
    one.batch = 1;
    rdn_pack_forward(&s, w, fuse, u);
    for (long i = 0; i < s.batch; i++)
        rdn_forward(&one, x + i * pixels * s.g0, f, i, u, b, fuse_b, y + i * pixels * s.g0,
                    memory(rdn_workspace(&one, 0)));

    float *dx = memory(s.batch * pixels * s.g0), *du = memory(rdn_gradients(&s)), *back = memory(rdn_packed(&s, 1));
    float *dw[LAYERS], *db[LAYERS], *dfuse = memory(s.g0 * channels), *dfuse_b = memory(s.g0);
    rdn_pack_backward(&s, w, fuse, back);
    rdn_backward(&s, 1, f, 0, gy, back, dx, du, 0, memory(rdn_workspace(&s, 1)));
    for (long j = 0; j < s.layers; j++) dw[j] = memory(s.g * 9 * reads(&s, j)), db[j] = memory(s.g);
    rdn_unpack(&s, du, dw, db, dfuse, dfuse_b);

    FILE *out = fopen(names[2], "wb");
    if (!out) return 4;
    write(out, y, s.batch * pixels * s.g0);
    write(out, dx, s.batch * pixels * s.g0);
    for (long j = 0; j < s.layers; j++) write(out, dw[j], s.g * 9 * reads(&s, j));
    for (long j = 0; j < s.layers; j++) write(out, db[j], s.g);
    write(out, dfuse, s.g0 * channels);
    write(out, dfuse_b, s.g0);
    return fclose(out) ? 4 : 0;
}
