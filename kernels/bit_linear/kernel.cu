// The one-bit linear map on tensor cores (mma.sync m16n8k16); formulas in reference.py, sizes and launches in cuda.py.
//
// 1. Outputs are the rows of an mma, rows of x its columns. A lane (g = lane / 4, t = lane % 4) holds weights of outputs
//    g and g + 8 of a tile. Products may be added in any order, as long as both operands have it: so the 16 bytes that a
//    lane loads are its weights as they lie, and no weight goes through shared memory.
// 2. A chunk is 512 inputs, 64 bytes of a row of bits: 16 bytes for each t, words 0 to 3. Shift s of a word (0 to 15)
//    makes the pair of inputs 15 - s and 31 - s, two numbers in a register: a shift to bring their bits to where signs
//    are, and one three-way operation to mask them and put them on -1. Shifts 2 j and 2 j + 1 of words of outputs g and
//    g + 8 are the four registers of an mma: a word is 8 of them.
// 3. alpha x, rounded, lies in that order too: a vector of 16 bytes is 4 shifts, what a lane needs for two mmas. One row
//    (`FUSED`): every block puts it into shared memory while its first bits are on their way; lanes of absent rows read
//    zeros. More rows: `prepare` writes it once, and lanes read it from memory; every vector serves `M_TILES` tiles.
// 4. The warps of a block share its outputs (`OUT_WARPS`) and the inputs. Their sums are added in the order of the warps,
//    so equal inputs give equal bits.
// 5. Very many rows are left to a library's product: `unpack` writes the signs as numbers for it.
//
// Macros: M_TILES (of 16 outputs a warp), N_TILES (of 8 rows of x), OUT_WARPS, WORDS (that a lane loads at once: 4 or 2),
// THREADS (at most), FUSED, HALF (float16 in place of bfloat16).

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

#define ROWS (8 * N_TILES)
#define OUTPUTS (16 * M_TILES * OUT_WARPS)
#define PER_CHUNK (4 / WORDS)
#define VECTORS (4 * WORDS)
#define STRIDE 20  // floats between rows of sums in shared memory, so that the lanes of a warp meet no bank twice

#ifdef __CUDACC_RTC__
#define DYNAMIC_SHARED(name) extern __shared__ uint4 name[]

#ifdef HALF
#define KIND "f16"
#define MINUS_ONES 0xBC00BC00u
#else
#define KIND "bf16"
#define MINUS_ONES 0xBF80BF80u
#endif

__device__ __forceinline__ void mma(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." KIND "." KIND ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 narrow(float low, float high) {
    u32 pair;
    asm("cvt.rn." KIND "x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ float widen(u16 value) {
#ifdef HALF
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
    return wide;
#else
    return __uint_as_float((u32)value << 16);
#endif
}

__device__ __forceinline__ void load_once(u32 (&words)[4], const u8* from) {
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "l"(from));
}

// Half of what a lane will want of these sectors: the other half is to be found in the first cache.
__device__ __forceinline__ void load_once(u32 (&words)[2], const u8* from) {
    asm("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "l"(from));
}

__device__ __forceinline__ void fetch(const u8* from) { asm volatile("prefetch.global.L2 [%0];" : : "l"(from)); }
#endif

__device__ __forceinline__ u32 signs(u32 word, int shift, u32 mask) { return ((word << shift) & mask) ^ MINUS_ONES; }

// -- x in the order of the weights -------------------------------------------------------------------------------------
// 32 numbers as pairs.
__device__ __forceinline__ void load_vectors(u32 (&pairs)[16], const u16* from) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint4 part = ((const uint4*)from)[i];
        pairs[4 * i] = part.x, pairs[4 * i + 1] = part.y, pairs[4 * i + 2] = part.z, pairs[4 * i + 3] = part.w;
    }
}

// The first `count` of them one by one, then zeros.
__device__ __forceinline__ void load_numbers(u32 (&pairs)[16], const u16* from, int count) {
#pragma unroll
    for (int i = 0; i < 16; i++) {
        const u32 low = 2 * i < count ? from[2 * i] : 0, high = 2 * i + 1 < count ? from[2 * i + 1] : 0;
        pairs[i] = low | high << 16;
    }
}

__device__ __forceinline__ float number(const u32 (&pairs)[16], int i) {
    return widen((u16)(i % 2 ? pairs[i / 2] >> 16 : pairs[i / 2] & 0xFFFFu));
}

// alpha x of the 32 inputs of a word, by shift; returns their part of x . beta.
__device__ __forceinline__ float scale_word(
    uint4 (&vectors)[4], const u16* x, const u16* alpha, const u16* beta, int start, int inputs, int whole) {
    u32 values[16], scales[16], shifts[16], pairs[16];
    if (whole && start + 32 <= inputs) {
        load_vectors(values, x + start);
        load_vectors(scales, alpha + start);
        load_vectors(shifts, beta + start);
    } else {
        load_numbers(values, x + start, inputs - start);
        load_numbers(scales, alpha + start, inputs - start);
        load_numbers(shifts, beta + start, inputs - start);
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 32; i++) sum += number(values, i) * number(shifts, i);
#pragma unroll
    for (int s = 0; s < 16; s++)
        pairs[s] = narrow(number(values, 15 - s) * number(scales, 15 - s), number(values, 31 - s) * number(scales, 31 - s));
#pragma unroll
    for (int j = 0; j < 4; j++)
        vectors[j] = make_uint4(pairs[4 * j], pairs[4 * j + 1], pairs[4 * j + 2], pairs[4 * j + 3]);
    return sum;
}

// The sum over a block, in all its threads; `parts` has a float for each warp.
__device__ __forceinline__ float block_sum(float value, float* parts) {
#pragma unroll
    for (int distance = 16; distance; distance /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    value = 0.0f;
    for (int warp = 0; warp < (int)blockDim.x / 32; warp++) value += parts[warp];
    return value;
}

// One row of x a block, absent ones as zeros: `scaled` is (groups of ROWS, chunks, 16, N_TILES, 32 lanes) vectors.
extern "C" __global__ void __launch_bounds__(256) prepare(
    const u16* x, const u16* alpha, const u16* beta, uint4* scaled, float* shift, int rows, int inputs, int chunks,
    int whole) {
    DYNAMIC_SHARED(shared);
    const int row = blockIdx.x, tile = row / 8 % N_TILES;
    float sum = 0.0f;
    for (int word = threadIdx.x; word < 16 * chunks; word += blockDim.x) {
        const int chunk = word / 16, i = word / 4 % 4, t = word % 4;
        uint4 vectors[4] = {};
        if (row < rows) {
            const int start = 512 * chunk + 128 * t + 32 * i;
            sum += scale_word(vectors, x + (size_t)row * inputs, alpha, beta, start, inputs, whole);
        }
        uint4* to = scaled + (((size_t)(row / ROWS) * chunks + chunk) * 16 + 4 * i) * N_TILES * 32;
#pragma unroll
        for (int j = 0; j < 4; j++) to[(j * N_TILES + tile) * 32 + row % 8 * 4 + t] = vectors[j];
    }
    sum = block_sum(sum, (float*)shared);
    if (threadIdx.x == 0) shift[row] = sum;
}

// -- the product -------------------------------------------------------------------------------------------------------
__device__ __forceinline__ void load_bits(
    u32 (&words)[M_TILES][2][WORDS], const u8* bits, const u32 (&rows)[M_TILES][2], int unit, int t, int row_bytes) {
    const int at = unit / PER_CHUNK * 64 + 16 * t;
#pragma unroll
    for (int tile = 0; tile < M_TILES; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (at < row_bytes)
                load_once(words[tile][half], bits + rows[tile][half] + at + unit % PER_CHUNK * 4 * WORDS);
            else
#pragma unroll
                for (int i = 0; i < WORDS; i++) words[tile][half][i] = 0;
        }
}

// Has the bits of a later turn come to the second cache: the compiler puts the loads of a turn to its end, where
// registers become free, too late for memory.
__device__ __forceinline__ void fetch_bits(
    const u8* bits, const u32 (&rows)[M_TILES][2], int unit, int t, int row_bytes) {
    const int at = unit / PER_CHUNK * 64 + 16 * t;
    if (at < row_bytes)
#pragma unroll
        for (int tile = 0; tile < M_TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++) fetch(bits + rows[tile][half] + at);
}

// Two mmas for each pair of tiles, of four shifts of word i; then the vectors that come next take the place of x.
__device__ __forceinline__ void multiply(
    float (&sums)[M_TILES][N_TILES][4], const u32 (&words)[M_TILES][2][WORDS], int i, int j, uint4 (&x)[N_TILES],
    const uint4* next, u32 mask) {
#pragma unroll
    for (int step = 0; step < 2; step++) {
        u32 a[M_TILES][4];
#pragma unroll
        for (int tile = 0; tile < M_TILES; tile++)
#pragma unroll
            for (int r = 0; r < 4; r++) a[tile][r] = signs(words[tile][r % 2][i], 4 * j + 2 * step + r / 2, mask);
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
#pragma unroll
            for (int tile = 0; tile < M_TILES; tile++)
                mma(sums[tile][n], a[tile], step ? x[n].z : x[n].x, step ? x[n].w : x[n].y);
            if (step) x[n] = next[32 * n];
        }
    }
}

// alpha x of the only row in shared memory: chunks of (16, 4 lanes) vectors.
__device__ __forceinline__ float scale_row(
    uint4* to, const u16* x, const u16* alpha, const u16* beta, int inputs, int chunks, int whole) {
    float sum = 0.0f;
    for (int word = threadIdx.x; word < 16 * chunks; word += blockDim.x) {
        const int chunk = word / 16, i = word / 4 % 4, t = word % 4;
        uint4 vectors[4];
        sum += scale_word(vectors, x, alpha, beta, 512 * chunk + 128 * t + 32 * i, inputs, whole);
#pragma unroll
        for (int j = 0; j < 4; j++) to[(chunk * 16 + 4 * i + j) * 4 + t] = vectors[j];
    }
    return sum;
}

// Adds up what the warps found of the only row, the first column of all tiles, and stores it.
__device__ __forceinline__ void store_row(
    const float (&sums)[M_TILES][N_TILES][4], float* parts, int k_warps, float shift, u16* y, int outputs) {
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4;
    if (threadIdx.x % 4 == 0)
#pragma unroll
        for (int tile = 0; tile < M_TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                parts[(warp * M_TILES + tile) * 16 + half * 8 + g] = sums[tile][0][2 * half];
    __syncthreads();
    for (int at = threadIdx.x; at < OUTPUTS; at += blockDim.x) {
        const int out = blockIdx.x * OUTPUTS + at, out_warp = at / (16 * M_TILES);
        if (out >= outputs) continue;
        float sum = 0.0f;
        for (int k = 0; k < k_warps; k++) sum += parts[(out_warp * k_warps + k) * 16 * M_TILES + at % (16 * M_TILES)];
        y[out] = (u16)narrow(sum + shift, 0.0f);
    }
}

// Adds up what the warps found of the tiles of 16 outputs `tile` and stores them.
__device__ __forceinline__ void store(
    const float (&sums)[N_TILES][4], float* parts, int tile, int k_warps, const float* shift, u16* y, int rows,
    int outputs) {
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    float* mine = parts + warp * ROWS * STRIDE;
#pragma unroll
    for (int n = 0; n < N_TILES; n++)
#pragma unroll
        for (int r = 0; r < 4; r++) mine[(8 * n + 2 * t + r % 2) * STRIDE + g + r / 2 * 8] = sums[n][r];
    __syncthreads();
    for (int at = threadIdx.x; at < OUT_WARPS * ROWS * 16; at += blockDim.x) {
        const int out_warp = at / 16 % OUT_WARPS, n = at / 16 / OUT_WARPS;
        const int row = blockIdx.y * ROWS + n;
        const int out = blockIdx.x * OUTPUTS + (out_warp * M_TILES + tile) * 16 + at % 16;
        if (row >= rows || out >= outputs) continue;
        float sum = 0.0f;
        for (int k = 0; k < k_warps; k++) sum += parts[((out_warp * k_warps + k) * ROWS + n) * STRIDE + at % 16];
        y[(size_t)row * outputs + out] = (u16)narrow(sum + shift[row], 0.0f);
    }
    __syncthreads();
}

// A block: OUTPUTS outputs of ROWS rows. x, alpha and beta are read if FUSED; else scaled and shift, of `prepare`.
extern "C" __global__ void __launch_bounds__(THREADS) bit_linear(
    const u16* x, const u16* alpha, const u16* beta, const uint4* scaled, const float* shift, const u8* bits, u16* y,
    int rows, int inputs, int outputs, int row_bytes, int whole) {
    DYNAMIC_SHARED(shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int k_warps = blockDim.x / 32 / OUT_WARPS, chunks = (row_bytes + 63) / 64, units = chunks * PER_CHUNK;
    u32 row_at[M_TILES][2];
#pragma unroll
    for (int tile = 0; tile < M_TILES; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int out = blockIdx.x * OUTPUTS + (warp / k_warps * M_TILES + tile) * 16 + half * 8 + g;
            row_at[tile][half] = (u32)(out < outputs ? out : outputs - 1) * (u32)row_bytes;
        }
    int unit = warp % k_warps;
    u32 words[M_TILES][2][WORDS], coming[M_TILES][2][WORDS];
    load_bits(words, bits, row_at, unit, t, row_bytes);
    fetch_bits(bits, row_at, unit + k_warps, t, row_bytes);

    float* parts = (float*)shared;
    const uint4* base;
    int per_unit = VECTORS * N_TILES * 32;
#if FUSED
    uint4* zeros = shared + 64 * chunks + 4;  // off by half of the banks from what the lanes of row 0 read
    parts = (float*)(zeros + 64);
    for (int at = threadIdx.x; at < 64; at += blockDim.x) zeros[at] = make_uint4(0, 0, 0, 0);
    const float own_shift = block_sum(scale_row(shared, x, alpha, beta, inputs, chunks, whole), parts);
    __syncthreads();
    base = (g == 0 ? shared : zeros) + t;
    per_unit = g == 0 ? VECTORS * 4 : 0;
    const int per_vector = 4;
#else
    base = scaled + (size_t)blockIdx.y * chunks * 16 * N_TILES * 32 + lane;
    const int per_vector = N_TILES * 32;
#endif

    // The compiler must not know that this is a constant: it would load it again and again, an instruction for each mma.
    const u32 mask = 0x80008000u | (u32)(rows >> 31);
    float sums[M_TILES][N_TILES][4] = {};
    uint4 columns[N_TILES];
    const uint4* here = base + (size_t)unit * per_unit;
#pragma unroll
    for (int n = 0; n < N_TILES; n++) columns[n] = here[32 * n];
    while (unit < units) {
        const bool more = unit + k_warps < units;
        const int after = more ? unit + k_warps : unit;
        fetch_bits(bits, row_at, unit + 2 * k_warps, t, row_bytes);
        load_bits(coming, bits, row_at, after, t, more ? row_bytes : 0);
        const uint4* there = base + (size_t)after * per_unit;
#pragma unroll
        for (int i = 0; i < WORDS; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int next = 4 * i + j + 1;
                multiply(sums, words, i, j, columns, next < VECTORS ? here + next * per_vector : there, mask);
            }
        here = there;
        unit += k_warps;
#pragma unroll
        for (int tile = 0; tile < M_TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int i = 0; i < WORDS; i++) words[tile][half][i] = coming[tile][half][i];
    }
#if FUSED
    store_row(sums, parts, k_warps, own_shift, y, outputs);
#else
#pragma unroll
    for (int tile = 0; tile < M_TILES; tile++) store(sums[tile], parts, tile, k_warps, shift, y, rows, outputs);
#endif
}

// -- signs as numbers --------------------------------------------------------------------------------------------------
// A byte of bits a thread, in the order in which they lie.
extern "C" __global__ void __launch_bounds__(256) unpack(const u8* bits, uint4* to, u32 bytes) {
    const u32 at = blockIdx.x * 256u + threadIdx.x;
    if (at >= bytes) return;
    const u32 byte = bits[at];
    u32 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++) pairs[i] = ((byte >> 2 * i & 1) << 15 | (byte >> (2 * i + 1) & 1) << 31) ^ MINUS_ONES;
    to[at] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}
