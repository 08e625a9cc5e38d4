/* Patches out of the bytes of an h5 file: cut as they lie (crop), or turned and scaled to float as well (develop).
 *
 * The bytes may be a map of a file that somebody cuts short meanwhile: reading behind its new end raises SIGBUS, which would kill
 * the process. Here it ends the call with CUT_SHORT.
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

static __thread sigjmp_buf *volatile guard; /* where a thread that is reading goes on after SIGBUS */
static struct sigaction before;

static void on_bus_error(int number, siginfo_t *info, void *context) {
  (void)context;
  if (guard) siglongjmp(*guard, 1);
  sigaction(SIGBUS, &before, NULL); /* not ours: a fault comes again by itself */
  if (info->si_code <= 0) raise(number);
}

__attribute__((constructor)) static void watch(void) {
  struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
  sigaction(SIGBUS, &action, &before);
}

/* Row 0 of a patch and the way to the next row, for a walk in any direction (data/augment.py). */
static const byte *corner(const byte *flat, long start, long down, long right, long size, long *pitch) {
  const long a = labs(down), b = labs(right);
  *pitch = a > b ? a : b;
  return flat + start + (down < 0 ? down * (size - 1) : 0) + (right < 0 ? right * (size - 1) : 0);
}

/* Let the kernel read what n patches need, all at once. */
void expect(const byte *flat, const long *start, const long *pitch, long n, long size) {
  for (long k = 0; k < n; k++) {
    const uintptr_t from = (uintptr_t)(flat + start[k]), page = from & -(uintptr_t)sysconf(_SC_PAGESIZE);
    madvise((void *)page, from - page + pitch[k] * (size - 1) + 3 * size, MADV_WILLNEED);
  }
}

/* Patch k begins at flat + start[k], its rows lie pitch[k] bytes apart -> out: [n][size][size][3] */
int crop(const byte *flat, const long *start, const long *pitch, long n, long size, byte *out) {
  sigjmp_buf back;
  if (sigsetjmp(back, 0)) return guard = NULL, CUT_SHORT;
  guard = &back;
  for (long k = 0; k < n; k++)
    for (long y = 0; y < size; y++) memcpy(out + (k * size + y) * 3 * size, flat + start[k] + y * pitch[k], 3 * size);
  guard = NULL;
  return FINE;
}

/* Pixel (y, x) of patch k lies at start[k] + y * down[k] + x * right[k] -> out: [n][size][size][3] in 0..1 */
int develop(const byte *flat, const long *start, const long *down, const long *right, long n, long size, float *out) {
  const long width = 3 * size;
  byte *const upright = malloc((size + 1) * width + 2), *const line = upright + size * width + 1; /* pixels are moved as 4 bytes */
  if (!upright) return NO_MEMORY;
  sigjmp_buf back;
  if (sigsetjmp(back, 0)) return guard = NULL, free(upright), CUT_SHORT;
  guard = &back;
  for (long k = 0; k < n; k++) {
    long pitch;
    const byte *from = corner(flat, start[k], down[k], right[k], size, &pitch);
    /* All rows first, without pause: they are far apart, and the memory can fetch them side by side. */
    for (long y = 0; y < size; y++) memcpy(upright + y * width, from + y * pitch, width);
    const int turned = labs(right[k]) == pitch && pitch != 3;
    const long dy = (turned ? 3 : width) * (down[k] < 0 ? -1 : 1), dx = (turned ? width : 3) * (right[k] < 0 ? -1 : 1);
    from = upright + (dy < 0 ? -dy * (size - 1) : 0) + (dx < 0 ? -dx * (size - 1) : 0);
    for (long y = 0; y < size; y++, from += dy, out += width) {
      const byte *row = from;
      if (dx != 3) {
        for (long x = 0; x < size; x++) memcpy(line + 3 * x, from + x * dx, 4);
        row = line;
      }
      for (long i = 0; i < width; i++) out[i] = row[i] / 255.f;
    }
  }
  guard = NULL;
  free(upright);
  return FINE;
}
