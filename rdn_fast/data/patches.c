/* Patches out of the bytes of an h5 file: copied as they lie (crop), or oriented and scaled to float (gather_to_float).
 *
 * The bytes may be a memory map of a file that is truncated meanwhile. Reading behind its new end raises SIGBUS, which
 * would kill the process; here it ends the call with CUT_SHORT.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef unsigned char byte;
enum { FINE, CUT_SHORT, NO_MEMORY };
enum { FLIP_VERTICAL = 1, FLIP_HORIZONTAL = 2, TRANSPOSE = 4 }; /* as in augment.py */

static __thread sigjmp_buf *volatile guard; /* where this thread continues after SIGBUS; NULL while it reads nothing */
static struct sigaction before;

static void on_bus_error(int number, siginfo_t *info, void *context) {
    (void)context;
    if (guard) siglongjmp(*guard, 1);
    sigaction(SIGBUS, &before, NULL); /* not ours: a fault is raised again on return */
    if (info->si_code <= 0) raise(number);
}

__attribute__((constructor)) static void install_handler(void) {
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    sigaction(SIGBUS, &action, &before);
}

/* Start reading the pages of n patches from the disk, without waiting for them. */
void read_ahead(const byte *flat, const long *start, const long *pitch, long n, long size) {
    for (long k = 0; k < n; k++) {
        const uintptr_t from = (uintptr_t)(flat + start[k]), page = from & -(uintptr_t)sysconf(_SC_PAGESIZE);
        madvise((void *)page, from - page + pitch[k] * (size - 1) + 3 * size, MADV_WILLNEED);
    }
}

/* Copy n patches. Patch k begins at flat + start[k], its rows lie pitch[k] bytes apart. out: [n][size][size][3] */
int crop(const byte *flat, const long *start, const long *pitch, long n, long size, byte *out) {
    sigjmp_buf back;
    if (sigsetjmp(back, 0)) return guard = NULL, CUT_SHORT;
    guard = &back;
    for (long k = 0; k < n; k++)
        for (long y = 0; y < size; y++)
            memcpy(out + (k * size + y) * 3 * size, flat + start[k] + y * pitch[k], 3 * size);
    guard = NULL;
    return FINE;
}

/* Copy n patches, orient each by its bits (flips before the transpose), and scale to 0..1. out: [n][size][size][3] */
int gather_to_float(const byte *flat, const long *start, const long *pitch, const byte *orientation, long n, long size,
                    float *out) {
    const long width = 3 * size;
    byte *const patch = malloc((size + 1) * width + 2); /* and one line; pixels are copied as 4 bytes */
    if (!patch) return NO_MEMORY;
    byte *const line = patch + size * width + 1;
    sigjmp_buf back;
    if (sigsetjmp(back, 0)) return guard = NULL, free(patch), CUT_SHORT;
    guard = &back;
    for (long k = 0; k < n; k++) {
        /* All rows first: they are far apart, and the memory fetches them side by side. */
        const byte *from = flat + start[k];
        const long step = pitch[k]; /* a variable: a write to `patch` might change pitch[k], as the compiler sees it */
        for (long y = 0; y < size; y++) memcpy(patch + y * width, from + y * step, width);
        from = patch;
        long down = width, right = 3;
        if (orientation[k] & FLIP_VERTICAL) from += (size - 1) * down, down = -down;
        if (orientation[k] & FLIP_HORIZONTAL) from += (size - 1) * right, right = -right;
        if (orientation[k] & TRANSPOSE) {
            const long other = down;
            down = right, right = other;
        }
        float *to = out + k * size * width;
        for (long y = 0; y < size; y++, from += down, to += width) {
            const byte *row = from;
            if (right != 3) {
                for (long x = 0; x < size; x++) memcpy(line + 3 * x, from + x * right, 4);
                row = line;
            }
            for (long i = 0; i < width; i++) to[i] = row[i] / 255.f;
        }
    }
    guard = NULL;
    free(patch);
    return FINE;
}
