// Stand-ins on a host for the instructions of rdn_fast/rdb/hopper_ptx.cuh: hopper.cu becomes C++ in which each thread
// of a block is a thread. What is asynchronous takes the most hostile moment: copies are made as soon as they are asked
// for, and products are computed when they are waited for, from what shared memory holds then. PATIENCE: seconds until
// a thread is said to wait for ever.
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define INLINE inline
#define DEVICE static inline
#define KERNEL(threads) static void
#define MAP const Map

struct Map { // of a tensor of three dimensions, the last one first
    char *data;
    long sizes[3], box[3];
};

struct Index {
    int x, y;
};
static thread_local Index threadIdx, blockIdx;
static Index gridDim;

// What the threads of a block share.
struct Gate {
    int arrived = 0;
    long generation = 0;
    std::condition_variable changed;
};
struct Barrier {
    int count = 0, pending = 0;
    long bytes = 0;
    u32 phase = 0;
    std::condition_variable changed;
};
struct Block {
    std::vector<unsigned char> memory;
    std::map<u32, Barrier> barriers;
    Gate all, multipliers, warps[32];
    std::mutex mutex;
    std::string fault;
};
static Block *block;

struct Fault : std::runtime_error {
    using std::runtime_error::runtime_error;
};
static void check(bool right, const char *what) {
    if (!right) throw Fault(what);
}
template <class Done>
static void wait_for(std::unique_lock<std::mutex> &lock, std::condition_variable &changed, Done done) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(PATIENCE);
    while (!done() && block->fault.empty() && std::chrono::steady_clock::now() < end)
        changed.wait_for(lock, std::chrono::seconds(1));
    check(block->fault.empty(), "another thread failed");
    check(done(), "waits for ever");
}
static void pass(Gate &gate, int threads) {
    std::unique_lock<std::mutex> lock(block->mutex);
    const long generation = gate.generation;
    if (++gate.arrived == threads) {
        gate.arrived = 0, gate.generation++;
        gate.changed.notify_all();
    } else wait_for(lock, gate.changed, [&] { return gate.generation != generation; });
}
static unsigned char *at(u32 address, u32 bytes) {
    check(address + bytes <= block->memory.size(), "shared memory is exceeded");
    return block->memory.data() + address;
}
static Barrier &barrier_at(u32 address) {
    check(address % 8 == 0 && address + 8 <= block->memory.size(), "no place for a barrier");
    return block->barriers[address];
}
static void complete(Barrier &barrier) { // with the lock held
    if (barrier.pending == 0 && barrier.bytes == 0) {
        barrier.phase++, barrier.pending = barrier.count;
        barrier.changed.notify_all();
    }
}

DEVICE u32 shared_memory() { return 0; }
template <int COUNT> DEVICE void lower_registers() {}
template <int COUNT> DEVICE void raise_registers() {}

DEVICE void barrier_init(u32 address, u32 count) {
    std::lock_guard<std::mutex> lock(block->mutex);
    Barrier &barrier = barrier_at(address);
    barrier.count = barrier.pending = count;
}
DEVICE void barriers_ready() {}
DEVICE void barrier_expect(u32 address, u32 bytes) {
    std::lock_guard<std::mutex> lock(block->mutex);
    Barrier &barrier = barrier_at(address);
    check(barrier.pending > 0, "an arrival too many");
    barrier.pending--, barrier.bytes += bytes;
    complete(barrier);
}
DEVICE void barrier_arrive(u32 address) { barrier_expect(address, 0); }
DEVICE void barrier_wait(u32 address, u32 parity) {
    std::unique_lock<std::mutex> lock(block->mutex);
    Barrier &barrier = barrier_at(address);
    wait_for(lock, barrier.changed, [&] { return (barrier.phase & 1) != parity; });
}
DEVICE void arrived(u32 address, u32 bytes) {
    std::lock_guard<std::mutex> lock(block->mutex);
    Barrier &barrier = barrier_at(address);
    barrier.bytes -= bytes;
    complete(barrier);
}
static int block_threads;
DEVICE void sync_block() { pass(block->all, block_threads); }
DEVICE void sync_multipliers() { pass(block->multipliers, 256); }
DEVICE void sync_warp() { pass(block->warps[threadIdx.x / 32], 32); }

template <class Copy> static u32 for_box(const Map &map, int column, int row, int plane, Copy copy) {
    u32 bytes = 0;
    for (long p = plane; p < plane + map.box[2]; p++)
        for (long r = row; r < row + map.box[1]; r++)
            for (long c = column; c < column + map.box[0]; c++, bytes += 2) {
                const bool inside =
                    p >= 0 && p < map.sizes[2] && r >= 0 && r < map.sizes[1] && c >= 0 && c < map.sizes[0];
                copy(bytes, inside ? map.data + 2 * ((p * map.sizes[1] + r) * map.sizes[0] + c) : nullptr);
            }
    return bytes;
}
DEVICE void load_box(u32 to, const Map &map, int column, int row, int plane, u32 barrier) {
    check(to % 128 == 0, "a box is not aligned");
    const u32 bytes = for_box(map, column, row, plane, [&](u32 offset, const char *from) {
        from ? memcpy(at(to + offset, 2), from, 2) : memset(at(to + offset, 2), 0, 2);
    });
    arrived(barrier, bytes);
}
DEVICE void load_bytes(u32 to, const char *from, u32 bytes, u32 barrier) {
    check(to % 16 == 0 && (u64)from % 16 == 0 && bytes % 16 == 0, "a copy is not aligned");
    memcpy(at(to, bytes), from, bytes);
    arrived(barrier, bytes);
}
DEVICE void store_box(const Map &map, int column, int row, int plane, u32 from) {
    check(from % 128 == 0, "a box is not aligned");
    for_box(map, column, row, plane, [&](u32 offset, char *to) {
        if (to) memcpy(to, at(from + offset, 2), 2);
    });
}
DEVICE void writes_ready() {}

// Numbers.
#define JOIN(a, b) JOIN_(a, b)
#define JOIN_(a, b) a##b
DEVICE float widen_f16(u16 bits) {
    _Float16 value;
    memcpy(&value, &bits, 2);
    return value;
}
DEVICE u16 round_f16(float x) {
    const _Float16 value = x;
    u16 bits;
    memcpy(&bits, &value, 2);
    return bits;
}
DEVICE float widen_bf16(u16 bits) {
    const u32 wide = (u32)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}
DEVICE u16 round_bf16(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
DEVICE float widen(u16 bits) { return JOIN(widen_, TYPE)(bits); }
DEVICE u32 pack(float first, float second) { return JOIN(round_, TYPE)(first) | (u32)JOIN(round_, TYPE)(second) << 16; }
DEVICE float positive(float x) { return x < 0 ? 0 : x; }

// Products.
struct Product {
    float *d;
    u64 a, b;
    int columns;
    bool rows_in_sum; // of core matrices
};
static thread_local std::deque<std::vector<Product>> products;
static thread_local bool begun;

DEVICE u64 descriptor(u32 at, u32 leading, u32 stride) {
    check((at | leading | stride) % 16 == 0 && (leading | stride) < 1 << 18, "a descriptor cannot hold that");
    return (u64)((at & 0x3ffff) >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32;
}
DEVICE u64 further(u64 descriptor, u32 bytes) {
    check(bytes % 16 == 0 && (descriptor & 0x3fff) + bytes / 16 < 1 << 14, "a descriptor cannot hold that");
    return descriptor + (bytes >> 4);
}
// Read 16 elements, in the direction of the sum, of row `row` of A or of that column of B.
DEVICE void operand(float (&x)[16], u64 descriptor, int row, bool rows_in_sum) {
    const u32 start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4;
    const u32 core = start + row / 8 * ((descriptor >> 32 & 0x3fff) << 4);
    for (int half = 0; half < 2; half++) {
        const unsigned char *from = at(core + half * leading, 128) + (rows_in_sum ? row % 8 * 2 : row % 8 * 16);
        for (int i = 0; i < 8; i++) {
            u16 bits;
            memcpy(&bits, from + i * (rows_in_sum ? 16 : 2), 2);
            x[8 * half + i] = widen(bits);
        }
    }
}
DEVICE void compute(const Product &p) {
    const int lane = threadIdx.x % 32, first = 16 * (threadIdx.x / 32 % 4) + lane / 4;
    float a[2][16], b[16];
    operand(a[0], p.a, first, p.rows_in_sum);
    operand(a[1], p.a, first + 8, p.rows_in_sum);
    for (int j = 0; j < p.columns / 8; j++)
        for (int e = 0; e < 2; e++) {
            operand(b, p.b, 8 * j + 2 * (lane % 4) + e, p.rows_in_sum);
            for (int m = 0; m < 2; m++) {
                float sum = 0;
                for (int k = 0; k < 16; k++) sum += a[m][k] * b[k];
                p.d[4 * j + 2 * m + e] += sum;
            }
        }
}
DEVICE void multiply(const Product &product) {
    check(begun, "a product without a fence before it");
    products.back().push_back(product);
}
// These three are .sync.aligned: a warp's lanes execute them together.
DEVICE void products_begin() {
    sync_warp();
    begun = true, products.emplace_back();
}
DEVICE void products_commit() {
    sync_warp();
    begun = false;
}
template <int LEFT> DEVICE void products_wait() {
    sync_warp();
    for (; products.size() > LEFT; products.pop_front())
        for (const Product &product : products.front()) compute(product);
    sync_warp();
}
DEVICE void multiply_256(float (&d)[128], u64 a, u64 b) { multiply({d, a, b, 256, false}); }
DEVICE void multiply_64(float (&d)[32], u64 a, u64 b) { multiply({d, a, b, 64, true}); }

// What the lanes of a warp exchange.
static u32 shared_words[32][32][4], shared_addresses[32][32];

DEVICE void load_matrices(u32 (&v)[4], u32 address) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    shared_addresses[warp][lane] = address;
    sync_warp();
    for (int m = 0; m < 4; m++) {
        u16 halves[2];
        for (int e = 0; e < 2; e++)
            memcpy(&halves[e], at(shared_addresses[warp][8 * m + 2 * (lane % 4) + e], 16) + lane / 4 * 2, 2);
        v[m] = halves[0] | (u32)halves[1] << 16;
    }
    sync_warp();
}
DEVICE void store_matrices(u32 address, const u32 (&v)[4]) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, matrix = lane / 8, column = lane % 8;
    check(address % 16 == 0, "a matrix is not aligned");
    memcpy(shared_words[warp][lane], v, sizeof v);
    sync_warp();
    for (int row = 0; row < 8; row++) {
        const u16 bits = shared_words[warp][row * 4 + column / 2][matrix] >> 16 * (column % 2);
        memcpy(at(address, 16) + 2 * row, &bits, 2);
    }
    sync_warp();
}
DEVICE int uniform(int x) { return x; }
DEVICE float sum_of_four_lanes(float x) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    memcpy(shared_words[warp][lane], &x, 4);
    sync_warp();
    float sum[4];
    for (int i = 0; i < 4; i++) memcpy(&sum[i], shared_words[warp][lane / 4 * 4 + i], 4);
    sync_warp();
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}
