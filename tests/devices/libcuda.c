/* A stand-in for the driver: it prints what it is given, and copies what a launch is given to where its tensor points.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static int kernel;

int cuGetErrorString(int code, const char **words) { return *words = code == 700 ? "an illegal access" : NULL, 0; }

int cuModuleLoadData(void **module, const char *image) {
    printf("load %s\n", image);
    return *module = &kernel, 0;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
    printf("function %d %s\n", module == &kernel, name);
    return *function = &kernel, 0;
}

int cuFuncSetAttribute(void *function, int attribute, int value) {
    return printf("attribute %d %d %d\n", function == &kernel, attribute, value), 0;
}

int cuTensorMapEncodeTiled(char *map, int type, uint32_t rank, void *start, const uint64_t *sizes,
                           const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave,
                           int swizzle, int l2, int fill) {
    printf("map %d %d %u; %lu %lu %lu; %lu %lu; %u %u %u; %u %u %u; %d %d %d %d\n", (int)((uintptr_t)map % 64), type,
           rank, sizes[0], sizes[1], sizes[2], strides[0], strides[1], box[0], box[1], box[2], steps[0], steps[1],
           steps[2], interleave, swizzle, l2, fill);
    memset(map, 'm', 128);
    memcpy(map, &start, 8);
    return 0;
}

int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    printf("launch %d; %u %u %u; %u %u %u; %u; %p %d\n", function == &kernel, gx, gy, gz, bx, by, bz, shared, stream,
           extra != NULL);
    char map[129] = {0};
    memcpy(map, arguments[0], 128);
    printf("%.120s %d\n", map + 8, *(int *)arguments[2]);
    fflush(stdout);
    **(short **)map = 7;
    **(float **)arguments[1] = 8;
    return *(int *)arguments[2] < 0 ? 700 : 0;
}
