// Vectors of float32 as wide as the machine's registers, and elementary functions of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

using i64 = std::int64_t;

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float V __attribute__((vector_size(4 * LANES)));
typedef std::int32_t I __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline V load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
static inline void store(float* p, V v) { *reinterpret_cast<Unaligned*>(p) = v; }
static inline V all(float x) { return x - V{}; }
static inline V as_float(I bits) { return (V)bits; }
static inline I as_bits(V v) { return (I)v; }

// The first `count` lanes; the others are `rest`.
static inline V load_some(const float* p, i64 count, float rest) {
    alignas(64) float lanes[LANES];
    for (int i = 0; i < LANES; i++) lanes[i] = i < count ? p[i] : rest;
    return *reinterpret_cast<V*>(lanes);
}

static inline void store_some(float* p, V v, i64 count) {
    if (count >= LANES) return store(p, v);
    alignas(64) float lanes[LANES];
    *reinterpret_cast<V*>(lanes) = v;
    for (i64 i = 0; i < count; i++) p[i] = lanes[i];
}

// Of all pairs of lanes that are S apart, in two vectors, a gets the first ones and b the second ones.
template <int S, int... L>
static inline void exchange(V& a, V& b, std::integer_sequence<int, L...>) {
    constexpr I first = {((L & S) ? LANES + L - S : L)...};
    constexpr I second = {((L & S) ? LANES + L : L + S)...};
    const V firsts = __builtin_shuffle(a, b, first);
    b = __builtin_shuffle(a, b, second);
    a = firsts;
}

// A square of LANES vectors is turned over: lane j of vector i and lane i of vector j change places.
template <int S = 1>
static inline void turn_over(V (&v)[LANES]) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (!(i & S)) exchange<S>(v[i], v[i + S], std::make_integer_sequence<int, LANES>{});
    if constexpr (2 * S < LANES) turn_over<2 * S>(v);
}

// Sums of the lanes: lane j of the result is the sum of vector j. Each round halves the number of vectors.
template <int S = 1>
static inline V lane_sums(V (&v)[LANES / S]) {
    if constexpr (S == LANES) {
        return v[0];
    } else {
        V next[LANES / S / 2];
#pragma GCC unroll 16
        for (int i = 0; i < LANES / S / 2; i++) {
            exchange<S>(v[2 * i], v[2 * i + 1], std::make_integer_sequence<int, LANES>{});
            next[i] = v[2 * i] + v[2 * i + 1];
        }
        return lane_sums<2 * S>(next);
    }
}

static inline V maximum(V a, V b) { return a > b ? a : b; }
static inline V minimum(V a, V b) { return a < b ? a : b; }

// op of all lanes, in every lane: of lane i and lane i ^ S, for ever smaller S.
template <int S = LANES / 2, class Op, int... L>
static inline V folded(V v, Op op, std::integer_sequence<int, L...> lanes) {
    constexpr I other = {(L ^ S)...};
    v = op(v, __builtin_shuffle(v, other));
    if constexpr (S > 1) v = folded<S / 2>(v, op, lanes);
    return v;
}

static inline float sum(V v) {
    return folded(v, [](V a, V b) { return a + b; }, std::make_integer_sequence<int, LANES>{})[0];
}

static inline float largest(V v) { return folded(v, maximum, std::make_integer_sequence<int, LANES>{})[0]; }

// exp to about one unit in the last place; below -87 the smallest normal number, so that -inf adds nothing to a sum.
// x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 in two parts (Cody, Waite 1980), a Taylor polynomial of degree 7 for e^r.
static inline V exp(V x) {
    x = minimum(maximum(x, all(-87.0f)), all(88.0f));
    const V shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, which the lowest bits are
    const V shifted = x * 1.44269504f + shift, n = shifted - shift;
    V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    V p = all(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return as_float(as_bits(p) + (as_bits(shifted) << 23));
}

// Natural logarithm of positive normal numbers to a few units in the last place, near 1 too.
// x = 2^n m with m in [sqrt(1/2), sqrt(2)); log m = 2 artanh(s), s = (m - 1) / (m + 1), by its odd Taylor polynomial.
static inline V log(V x) {
    I bits = as_bits(x);
    I n = (bits - 0x3F3504F3) >> 23;
    V m = as_float(bits - (n << 23)), e = __builtin_convertvector(n, V);
    V f = m - 1.0f, s = f / (m + 1.0f), s2 = s * s;
    V p = all(2.0f / 11);
    p = p * s2 + 2.0f / 9;
    p = p * s2 + 2.0f / 7;
    p = p * s2 + 2.0f / 5;
    p = p * s2 + 2.0f / 3;
    // 2 s = f - s f, which keeps f's last bits.
    return e * 0.693359375f + ((f - s * (f - s2 * p)) - e * 2.12194440e-4f);
}

static inline V silu(V x) { return x / (exp(-x) + 1.0f); }

// log(1 + e^x). What 1 + y rounds away is made good by y / ((1 + y) - 1) (Kahan).
static inline V softplus(V x) {
    V negative = x > 0.0f ? -x : x;
    V y = exp(negative), u = y + 1.0f, gap = u - 1.0f;
    V log1p = gap == 0.0f ? y : log(u) * (y / (gap == 0.0f ? all(1.0f) : gap));
    return maximum(x, V{}) + log1p;
}

static inline float silu(float x) { return x / (1.0f + std::exp(-x)); }
