/* `run_patches IN OUT`: patches.c on any processor, an emulated one too.
 *
 * IN: three longs, n, size and the number of source bytes; start and pitch, n longs each; orientation, n bytes; the
 * source's bytes. OUT: the patches of crop(), bytes, then those of gather_to_float(), floats.
 */
#include "patches.c"

#include <stdio.h>

static void *given(FILE *in, long bytes) {
    void *values = malloc(bytes);
    if (!values || fread(values, 1, bytes, in) != (size_t)bytes) exit(3);
    return values;
}

int main(int count, char **names) {
    struct {
        long n, size, bytes;
    } head;
    FILE *in = count == 3 ? fopen(names[1], "rb") : NULL;
    if (!in || fread(&head, sizeof head, 1, in) != 1) return 2;
    const long n = head.n, size = head.size, values = n * size * size * 3;
    const long *start = given(in, n * sizeof(long)), *pitch = given(in, n * sizeof(long));
    const byte *orientation = given(in, n), *flat = given(in, head.bytes);
    byte *pixels = malloc(values);
    float *scaled = malloc(values * sizeof(float));
    if (!pixels || !scaled) return 3;
    read_ahead(flat, start, pitch, n, size);
    if (crop(flat, start, pitch, n, size, pixels)) return 5;
    if (gather_to_float(flat, start, pitch, orientation, n, size, scaled)) return 5;
    FILE *out = fopen(names[2], "wb");
    if (!out || fwrite(pixels, 1, values, out) != (size_t)values) return 4;
    if (fwrite(scaled, sizeof(float), values, out) != (size_t)values) return 4;
    return fclose(out) ? 4 : 0;
}
