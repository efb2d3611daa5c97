// Enough of a GPU to run a CUDA program as C++ on one core: `launch` runs the threads of a block as fibers, which take
// turns where a warp or a block meets. Tensor cores by the table of fragments in the PTX manual (mma.m16n8k16). Uses of
// memory between two meetings are not checked for races; `load_once` and `fetch` count what they are asked for outside of
// `first` to `past`.
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define DYNAMIC_SHARED(name) uint4* name = (uint4*)emulated::shared.data()

struct alignas(16) uint4 { unsigned x, y, z, w; };
struct Index { int x, y, z; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulated {
constexpr size_t STACK = 1 << 16;
struct Fiber { ucontext_t context; std::vector<char> stack; bool done; };
struct Meeting { int arrived = 0, round = 0; };
struct Warp { Meeting meeting; unsigned a[32][4], b[32][2]; float c[32][4], given[32], taken[32]; };

inline std::vector<uint4> shared;
inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline Meeting block;
inline Index thread, place, size;
inline ucontext_t home;
inline const unsigned char *first, *past;
inline int strayed;

inline void wait() {
    const int mine = thread.x;
    swapcontext(&fibers[mine].context, &home);
    thread.x = mine;
}

// The last one to come does the work; nobody leaves before.
template <class Work> void meet(Meeting& meeting, int count, Work work) {
    const int round = meeting.round;
    if (++meeting.arrived == count) {
        work();
        meeting.arrived = 0;
        meeting.round++;
    }
    while (meeting.round == round) wait();
}

inline float number(unsigned pair, int half) {
    const uint16_t bits = (uint16_t)(half ? pair >> 16 : pair & 0xFFFFu);
#ifdef HALF
    _Float16 value;
    std::memcpy(&value, &bits, 2);
    return (float)value;
#else
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
#endif
}

inline uint16_t rounded(float value) {
#ifdef HALF
    const _Float16 narrow = (_Float16)value;
    uint16_t bits;
    std::memcpy(&bits, &narrow, 2);
    return bits;
#else
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return std::isnan(value) ? 0x7FFF : (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
#endif
}

inline void tensor_core(Warp& warp) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, t = lane % 4;
        for (int half = 0; half < 2; half++) {
            for (int r = 0; r < 4; r++) a[g + r % 2 * 8][2 * t + half + r / 2 * 8] = number(warp.a[lane][r], half);
            for (int r = 0; r < 2; r++) b[2 * t + half + r * 8][g] = number(warp.b[lane][r], half);
        }
    }
    for (int lane = 0; lane < 32; lane++)
        for (int r = 0; r < 4; r++)
            for (int k = 0; k < 16; k++) warp.c[lane][r] += a[lane / 4 + r / 2 * 8][k] * b[k][lane % 4 * 2 + r % 2];
}

template <class Program> void launch(Program program, int grid_x, int grid_y, int threads, int bytes) {
    static Program* running;
    running = &program;
    size = {threads, 1, 1};
    for (int at = 0; at < grid_x * grid_y; at++) {
        place = {at % grid_x, at / grid_x, 0};
        shared.assign(bytes / 16 + 1, uint4{0x7FC17FC1u, 0x7FC17FC1u, 0x7FC17FC1u, 0x7FC17FC1u});  // NaN
        warps.assign(threads / 32, Warp{});
        block = {};
        fibers.resize(threads);
        for (int i = 0; i < threads; i++) {
            Fiber& fiber = fibers[i];
            fiber.stack.resize(STACK);
            fiber.done = false;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.data();
            fiber.context.uc_stack.ss_size = STACK;
            fiber.context.uc_link = &home;
            makecontext(&fiber.context, +[] { const int mine = thread.x; (*running)(); fibers[mine].done = true; }, 0);
        }
        for (bool left = true; left;) {
            left = false;
            for (int i = 0; i < threads; i++) {
                if (fibers[i].done) continue;
                left = true;
                thread.x = i;
                swapcontext(&home, &fibers[i].context);
            }
        }
    }
}
}  // namespace emulated

#define threadIdx emulated::thread
#define blockIdx emulated::place
#define blockDim emulated::size

inline void __syncthreads() { emulated::meet(emulated::block, blockDim.x, [] {}); }

inline float __shfl_xor_sync(unsigned, float value, int distance) {
    auto& warp = emulated::warps[threadIdx.x / 32];
    const int lane = threadIdx.x % 32;
    warp.given[lane] = value;
    emulated::meet(warp.meeting, 32, [&] { std::memcpy(warp.taken, warp.given, sizeof warp.given); });
    return warp.taken[lane ^ distance];
}

inline void mma(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    auto& warp = emulated::warps[threadIdx.x / 32];
    const int lane = threadIdx.x % 32;
    std::memcpy(warp.a[lane], a, sizeof a);
    std::memcpy(warp.c[lane], sum, sizeof sum);
    warp.b[lane][0] = b0, warp.b[lane][1] = b1;
    emulated::meet(warp.meeting, 32, [&] { emulated::tensor_core(warp); });
    std::memcpy(sum, warp.c[lane], sizeof sum);
}

inline unsigned narrow(float low, float high) { return emulated::rounded(low) | (unsigned)emulated::rounded(high) << 16; }
inline float widen(unsigned short value) { return emulated::number(value, 0); }
inline void fetch(const unsigned char* from) { emulated::strayed += from < emulated::first || from >= emulated::past; }
template <int COUNT> void load_once(unsigned (&words)[COUNT], const unsigned char* from) {
    if (from < emulated::first || from + sizeof words > emulated::past)
        emulated::strayed++;
    else
        std::memcpy(words, from, sizeof words);
}

#ifdef HALF
#define MINUS_ONES 0xBC00BC00u
#else
#define MINUS_ONES 0xBF80BF80u
#endif
