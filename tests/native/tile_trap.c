/* AMX's tile instructions for processors without them: a SIGILL handler executes them, as far as rdb/amx.c needs them.
 *
 * The processor raises SIGILL at an instruction that it does not have. trap_tiles() installs a handler that reads the
 * instruction and its operands, does what Intel's manual says (volume 2, TDPBF16PS and others), and goes on behind it.
 * It checks what the processor would check: that tiles are configured, and that their sizes fit.
 */
#define _GNU_SOURCE
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} layout;

static _Thread_local layout set;
static _Thread_local uint8_t tiles[8][16][64];
enum { PRODUCTS, LOADS, STORES };
static _Atomic long executed[3];

enum { NONE, P66, PF3, PF2 }; /* VEX.pp */

/* How many of PRODUCTS, LOADS or STORES were executed. */
long trapped(int kind) { return executed[kind]; }

/* Whether the calling thread has tiles configured: the system then saves 8 KiB more whenever it changes threads. */
int configured(void) { return set.palette; }

static int64_t general(const ucontext_t *at, int number) { /* a register, by its number in an instruction */
    static const int place[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return at->uc_mcontext.gregs[place[number]];
}

/* Read the memory operand whose ModRM byte is at `code`; return its address, and set *stride and the code behind it. */
static char *operand(const ucontext_t *at, const uint8_t *code, const uint8_t **end, int64_t *stride) {
    int x = !(code[-3] & 0x40) * 8, b = !(code[-3] & 0x20) * 8, mod = code[0] >> 6, rm = code[0] & 7, base = rm;
    int64_t address = 0, offset = 0;
    *stride = 0;
    code++;
    if (rm == 4) {
        int index = (*code >> 3 & 7) + x;
        base = *code & 7;
        if (index != 4) *stride = general(at, index) << (*code >> 6);
        code++;
    }
    int relative = rm == 5 && mod == 0, none = rm == 4 && base == 5 && mod == 0;
    if (mod == 1) offset = (int8_t)*code, code += 1;
    if (mod == 2 || relative || none) {
        int32_t value;
        memcpy(&value, code, 4);
        offset = value, code += 4;
    }
    if (relative) address = (int64_t)(intptr_t)code;
    else if (!none) address = general(at, base + b);
    *end = code;
    return (char *)(intptr_t)(address + offset);
}

static float flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }

static float from_bf16(const uint8_t *at) {
    uint32_t bits = (uint32_t)at[1] << 24 | (uint32_t)at[0] << 16;
    float x;
    memcpy(&x, &bits, 4);
    return flushed(x);
}

static int product(int c, int a, int b) {
    executed[PRODUCTS]++;
    if (set.row_bytes[a] / 4 != set.rows[b] || set.rows[c] != set.rows[a] || set.row_bytes[c] != set.row_bytes[b])
        return 0;
    for (int i = 0; i < set.rows[c]; i++)
        for (int j = 0; j < set.row_bytes[c] / 4; j++) {
            float sum[2] = {0, 0}, old;
            for (int k = 0; k < set.row_bytes[a] / 4; k++)
                for (int odd = 0; odd < 2; odd++)
                    sum[odd] = flushed(fmaf(from_bf16(tiles[a][i] + 4 * k + 2 * odd),
                                            from_bf16(tiles[b][k] + 4 * j + 2 * odd), sum[odd]));
            memcpy(&old, tiles[c][i] + 4 * j, 4);
            old = flushed(flushed(old) + flushed(sum[0] + sum[1]));
            memcpy(tiles[c][i] + 4 * j, &old, 4);
        }
    return 1;
}

static int configure(const char *from) {
    memcpy(&set, from, sizeof set);
    memset(tiles, 0, sizeof tiles);
    if (set.palette != 1 || set.start_row) return 0;
    for (int t = 0; t < 16; t++)
        if (set.rows[t] > 16 * (t < 8) || set.row_bytes[t] > 64 * (t < 8) || !set.rows[t] != !set.row_bytes[t])
            return 0;
    return 1;
}

static int move(int t, char *memory, int64_t stride, int store) {
    executed[store ? STORES : LOADS]++;
    for (int i = 0; i < set.rows[t]; i++) {
        char *row = memory + i * stride;
        if (store) memcpy(row, tiles[t][i], set.row_bytes[t]);
        else memcpy(tiles[t][i], row, set.row_bytes[t]);
    }
    return set.rows[t] > 0;
}

/* Execute the instruction at `code`. Return the code behind it, or NULL if it is none of these or would fault. */
static const uint8_t *execute(const ucontext_t *at, const uint8_t *code) {
    if (code[0] != 0xc4 || (code[1] & 0x9f) != 0x82 || code[2] & 0x84) return NULL; /* VEX, map 0F38, W0, 128 bits */
    int prefix = code[2] & 3, third = ~code[2] >> 3 & 15, op = code[3], registers = code[4] >= 0xc0;
    int t = code[4] >> 3 & 7, second = code[4] & 7, done = 0;
    const uint8_t *end = code + 5;
    char *memory = NULL;
    int64_t stride = 0;
    if (!registers) memory = operand(at, code + 4, &end, &stride);
    if (op == 0x49 && prefix == NONE && !registers) {
        done = configure(memory); /* LDTILECFG */
    } else if (op == 0x49 && prefix == NONE) {
        memset(&set, 0, sizeof set), done = 1; /* TILERELEASE */
    } else if (set.palette == 1) {
        if (op == 0x49 && prefix == PF2) memset(tiles[t], 0, sizeof tiles[t]), done = 1; /* TILEZERO */
        if (op == 0x4b && prefix == PF2 && !registers) {
            memset(tiles[t], 0, sizeof tiles[t]);
            done = move(t, memory, stride, 0); /* TILELOADD */
        }
        if (op == 0x4b && prefix == PF3 && !registers) done = move(t, memory, stride, 1);            /* TILESTORED */
        if (op == 0x5c && prefix == PF3 && registers && third < 8) done = product(t, second, third); /* TDPBF16PS */
    }
    return done ? end : NULL;
}

static void handle(int number, siginfo_t *info, void *context) {
    ucontext_t *at = context;
    const uint8_t *next = execute(at, (const uint8_t *)(intptr_t)at->uc_mcontext.gregs[REG_RIP]);
    (void)info;
    if (next) at->uc_mcontext.gregs[REG_RIP] = (greg_t)(intptr_t)next;
    else signal(number, SIG_DFL); /* the instruction is executed again, and ends the process */
}

/* Install the handler, or the default one. */
void trap_tiles(int install) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_flags = install ? SA_SIGINFO | SA_NODEFER : 0;
    if (install) action.sa_sigaction = handle;
    else action.sa_handler = SIG_DFL;
    sigaction(SIGILL, &action, NULL);
}
