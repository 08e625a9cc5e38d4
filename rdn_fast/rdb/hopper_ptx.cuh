/* The instructions of sm_90a that hopper.cu is made of, a function each. No header of CUDA is needed.
 *
 * TYPE is f16 or bf16. Addresses of shared memory are u32, in bytes. A matrix in shared memory has no swizzle: it
 * consists of core matrices of 128 contiguous bytes, 8 rows of 8 elements. `descriptor` says where they lie. */
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define TEXT(name) TEXT_OF(name)
#define TEXT_OF(name) #name
#define INLINE __device__ __forceinline__
#define DEVICE static INLINE
#define KERNEL(threads) extern "C" __global__ __launch_bounds__(threads, 1) void

/* A tensor map: cuTensorMapEncodeTiled writes it, kernels only pass its address on. */
struct alignas(64) Map {
    char bytes[128];
};
#define MAP const __grid_constant__ Map

DEVICE u32 shared_memory() {
    extern __shared__ __align__(1024) char bytes[];
    return (u32)__cvta_generic_to_shared(bytes);
}

/* Change the number of a thread's registers; all warps of a warpgroup do it. */

template <int COUNT> DEVICE void lower_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }

template <int COUNT> DEVICE void raise_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }

/* Barriers: `count` arrivals, and the bytes that are expected, complete a phase. Phases alternate in parity, from 0. */

DEVICE void barrier_init(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

/* Make initialized barriers known to the copy engine. */
DEVICE void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DEVICE void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Arrive, and expect that many bytes from copies in this phase. */
DEVICE void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

/* Wait until the barrier's phase of that parity is complete. */
DEVICE void barrier_wait(u32 barrier, u32 parity) {
    u32 done;
    do
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    while (!done);
}

DEVICE void sync_block() { __syncthreads(); }

/* Wait for the two warpgroups that multiply, 256 threads. */
DEVICE void sync_multipliers() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

/* Copies by the copy engine (TMA). Coordinates of a box count elements; what lies outside reads as zeros. */

DEVICE void load_box(u32 to, const Map &map, int column, int row, int plane, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
                 "l"(&map), "r"(column), "r"(row), "r"(plane), "r"(barrier)
                 : "memory");
}

DEVICE void load_bytes(u32 to, const char *from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

/* Store a box and wait until it is written. What lies outside of the tensor is not written. */
DEVICE void store_box(const Map &map, int column, int row, int plane, u32 from) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(&map),
                 "r"(column), "r"(row), "r"(plane), "r"(from)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

/* Make this thread's writes to shared memory visible to the copy engine. */
DEVICE void writes_ready() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* Products (wgmma) by a warpgroup of 128 threads: asynchronous, in groups. Of element e of a thread's sums, row and
 * column are 16 * warp + lane / 4 + 8 * (e / 2 % 2) and 8 * (e / 4) + 2 * (lane % 4) + e % 2. */

/* leading: bytes between core matrices in the direction of the sum; stride: in that of rows (A) or columns (B). */
DEVICE u64 descriptor(u32 at, u32 leading, u32 stride) {
    return (u64)((at & 0x3ffff) >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32;
}

/* Return the descriptor of a matrix that lies `bytes` further. */
DEVICE u64 further(u64 descriptor, u32 bytes) { return descriptor + (bytes >> 4); }

DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/* Wait until all groups but the last LEFT ones are done. */
template <int LEFT> DEVICE void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

#define NAMES(tens) /* of ten operands of an asm statement */                                                          \
    "%" tens "0, %" tens "1, %" tens "2, %" tens "3, %" tens "4, %" tens "5, %" tens "6, %" tens "7, %" tens           \
    "8, %" tens "9, "
#define SUMS_8(d, i)                                                                                                   \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]),        \
        "+f"(d[i + 7])
#define SUMS_32(d, i) SUMS_8(d, i), SUMS_8(d, i + 8), SUMS_8(d, i + 16), SUMS_8(d, i + 24)

/* d [64, 256] += A [64, 16] B [16, 256]; in both, the 8 elements of a core matrix's row follow in the sum. */
DEVICE void multiply_256(float (&d)[128], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." TEXT(TYPE) "." TEXT(TYPE) " {" NAMES("") NAMES("1")
                     NAMES("2") NAMES("3") NAMES("4") NAMES("5") NAMES("6") NAMES("7") NAMES("8") NAMES("9") NAMES("10")
                         NAMES("11") "%120, %121, %122, %123, %124, %125, %126, %127}, "
                                     "%128, %129, 1, 1, 1, 0, 0;"
                 : SUMS_32(d, 0), SUMS_32(d, 32), SUMS_32(d, 64), SUMS_32(d, 96)
                 : "l"(a), "l"(b));
}

/* d [64, 64] += A [64, 16] B [16, 64]; in both, the rows of a core matrix follow in the sum. */
DEVICE void multiply_64(float (&d)[32], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." TEXT(TYPE) "." TEXT(TYPE) " {" NAMES("") NAMES("1")
                     NAMES("2") "%30, %31}, %32, %33, 1, 1, 1, 1, 1;"
                 : SUMS_32(d, 0)
                 : "l"(a), "l"(b));
}

/* Four 8x8 matrices, whose elements (lane / 4, 2 * (lane % 4) + 0..1) a lane holds in one register each. In memory they
 * are transposed. Lane i gives the address of column i % 8 of matrix i / 8, which is 16 contiguous bytes. */

DEVICE void load_matrices(u32 (&v)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(at)
                 : "memory");
}

DEVICE void store_matrices(u32 at, const u32 (&v)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v[0]),
                 "r"(v[1]), "r"(v[2]), "r"(v[3])
                 : "memory");
}

/* Two numbers of TYPE in a register, the first one in the low half. */

DEVICE u32 pack(float first, float second) {
    u32 both;
    asm("cvt.rn." TEXT(TYPE) "x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}

DEVICE float widen(u16 bits) {
    float value;
    asm("cvt.f32." TEXT(TYPE) " %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

DEVICE float positive(float x) { /* a ReLU that keeps NaN */
    float y;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(y) : "f"(x));
    return y;
}

/* Tell the compiler that x is the same in all lanes: it then computes with it once for the warp. */
DEVICE int uniform(int x) { return __shfl_sync(~0u, x, 0); }

/* Return the sum of x over four neighbouring lanes. */
DEVICE float sum_of_four_lanes(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}
