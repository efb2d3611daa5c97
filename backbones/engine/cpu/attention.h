// Attention of one new token: all query heads that share a key head are taken together, keys and values are read where
// they lie (pages, rows, rings), live ones only.
#pragma once

#include "gemm.h"

// Keys and values that lie side by side, `(count, dim)` each.
struct Segment {
    const float *keys, *values;
    i64 count;
};

// Where keys and values are; strides in floats, last axes dense. Without a table a row is one block.
struct Cache {
    float *keys, *values;
    i64 key_layer, key_block, key_head, value_layer, value_block, value_head;
    const i64* table;
    i64 table_row, blocks, page, rows, length;

    i64 block_of(i64 row, i64 position) const { return table ? table[row * table_row + position / page] : row; }
    float* key(i64 layer, i64 head, i64 block) const {
        return keys + layer * key_layer + block * key_block + head * key_head;
    }
    float* value(i64 layer, i64 head, i64 block) const {
        return values + layer * value_layer + block * value_block + head * value_head;
    }

    // Of positions 0 .. live - 1; returns how many segments.
    i64 segments(i64 layer, i64 head, i64 row, i64 live, Segment* to) const {
        i64 n = 0;
        for (i64 start = 0; start < live; start += page, n++) {
            i64 block = block_of(row, start), left = live - start;
            to[n] = {key(layer, head, block), value(layer, head, block), left < page ? left : page};
        }
        return n;
    }
};

// -- rotation ----------------------------------------------------------------------------------------------------------
// A pair of channels (a, b) becomes (t0 a + t1 b, t2 a + t3 b). turns: `(4, dim / 2)` of the token's position.
static inline void turn(float* y, const float* x, const float* turns, i64 dim, bool interleaved) {
    const i64 half = dim / 2;
    const float *t0 = turns, *t1 = turns + half, *t2 = t1 + half, *t3 = t2 + half;
    if (interleaved) {
#pragma omp simd
        for (i64 j = 0; j < half; j++) {
            float a = x[2 * j], b = x[2 * j + 1];
            y[2 * j] = t0[j] * a + t1[j] * b;
            y[2 * j + 1] = t2[j] * a + t3[j] * b;
        }
    } else {
#pragma omp simd
        for (i64 j = 0; j < half; j++) {
            float a = x[j], b = x[j + half];
            y[j] = t0[j] * a + t1[j] * b;
            y[j + half] = t2[j] * a + t3[j] * b;
        }
    }
}

// -- scores ------------------------------------------------------------------------------------------------------------
static inline float dot(const float* a, const float* b, i64 n) {
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (i64 i = 0; i < n; i++) total += a[i] * b[i];
    return total;
}

// LANES keys at once for one query of D vectors; whole: all of them exist, else the last stands in for missing ones.
template <int D, bool whole>
static inline V scores_of(const V (&q)[D], const float* keys, i64 count) {
    V acc[LANES];
#pragma GCC unroll 16
    for (i64 i = 0; i < LANES; i++) {
        const float* key = keys + (whole || i < count ? i : count - 1) * D * LANES;
        acc[i] = q[0] * load(key);
#pragma GCC unroll 8
        for (int d = 1; d < D; d++) acc[i] += q[d] * load(key + d * LANES);
    }
    return lane_sums(acc);
}

template <int D>
static void scores_wide(const float* query, i64 queries, const float* keys, i64 count, float* out, i64 stride) {
    for (i64 start = 0; start < count; start += LANES) {
        const float* block = keys + start * D * LANES;
        for (i64 g = 0; g < queries; g++) {
            V q[D];
#pragma GCC unroll 8
            for (int d = 0; d < D; d++) q[d] = load(query + (g * D + d) * LANES);
            bool whole = count - start >= LANES;
            store(out + g * stride + start,
                  whole ? scores_of<D, true>(q, block, LANES) : scores_of<D, false>(q, block, count - start));
        }
    }
}

// Products of `(queries, dim)` and `(count, dim)` into rows of `out`; writes up to LANES - 1 numbers too many.
static void scores(const float* query, i64 queries, const float* keys, i64 count, i64 dim, float* out, i64 stride) {
    switch (dim % LANES ? 0 : dim / LANES) {
        case 1: return scores_wide<1>(query, queries, keys, count, out, stride);
        case 2: return scores_wide<2>(query, queries, keys, count, out, stride);
        case 3: return scores_wide<3>(query, queries, keys, count, out, stride);
        case 4: return scores_wide<4>(query, queries, keys, count, out, stride);
        case 6: return scores_wide<6>(query, queries, keys, count, out, stride);
        case 8: return scores_wide<8>(query, queries, keys, count, out, stride);
    }
    for (i64 i = 0; i < count; i++)
        for (i64 g = 0; g < queries; g++) out[g * stride + i] = dot(query + g * dim, keys + i * dim, dim);
}

// Exponentials of n scores in place, over the largest; returns the inverse of their sum. There is room for whole
// vectors.
static float exponentials(float* scores, i64 n) {
    for (i64 i = n; i % LANES; i++) scores[i] = -INFINITY;
    V most = all(-INFINITY), total = {};
    for (i64 i = 0; i < n; i += LANES) most = maximum(most, load(scores + i));
    const V top = all(largest(most));
    for (i64 i = 0; i < n; i += LANES) {
        V e = exp(load(scores + i) - top);
        store(scores + i, e);
        total += e;
    }
    return 1.0f / sum(total);
}

// -- values ------------------------------------------------------------------------------------------------------------
// acc[g] += sum of weights[g][i] values[i]. Four chains of additions, as one would wait for itself.
template <int D>
static void values_wide(const float* weights, i64 stride, i64 queries, const float* values, i64 count, float* acc) {
    constexpr int CHAINS = D >= 4 ? 2 : 4;
    for (i64 g = 0; g < queries; g++) {
        const float* w = weights + g * stride;
        V chain[CHAINS][D] = {};
        i64 i = 0;
        for (; i + CHAINS <= count; i += CHAINS)
#pragma GCC unroll 4
            for (int c = 0; c < CHAINS; c++)
#pragma GCC unroll 8
                for (int d = 0; d < D; d++) chain[c][d] += w[i + c] * load(values + ((i + c) * D + d) * LANES);
        for (; i < count; i++)
#pragma GCC unroll 8
            for (int d = 0; d < D; d++) chain[0][d] += w[i] * load(values + (i * D + d) * LANES);
#pragma GCC unroll 8
        for (int d = 0; d < D; d++) {
            V total = chain[0][d];
#pragma GCC unroll 4
            for (int c = 1; c < CHAINS; c++) total += chain[c][d];
            float* to = acc + (g * D + d) * LANES;
            store(to, load(to) + total);
        }
    }
}

static void add_values(const float* weights, i64 stride, i64 queries, const float* values, i64 count, i64 dim,
                       float* acc) {
    switch (dim % LANES ? 0 : dim / LANES) {
        case 1: return values_wide<1>(weights, stride, queries, values, count, acc);
        case 2: return values_wide<2>(weights, stride, queries, values, count, acc);
        case 3: return values_wide<3>(weights, stride, queries, values, count, acc);
        case 4: return values_wide<4>(weights, stride, queries, values, count, acc);
        case 6: return values_wide<6>(weights, stride, queries, values, count, acc);
        case 8: return values_wide<8>(weights, stride, queries, values, count, acc);
    }
    for (i64 i = 0; i < count; i++)
        for (i64 g = 0; g < queries; g++) {
            const float w = weights[g * stride + i];
#pragma omp simd
            for (i64 d = 0; d < dim; d++) acc[g * dim + d] += w * values[i * dim + d];
        }
}

// -- together ----------------------------------------------------------------------------------------------------------
// What one thread needs to attend; `scores` has `stride` numbers for every query.
struct Desk {
    float *query, *scores;
    Segment* segments;
    i64 stride;
};

static inline i64 score_all(Desk desk, const float* query, i64 queries, i64 key_shift, i64 segments, i64 dim,
                            float* out) {
    i64 n = 0;
    for (i64 s = 0; s < segments; n += desk.segments[s++].count)
        scores(query, queries, desk.segments[s].keys + key_shift, desk.segments[s].count, dim, out + n, desk.stride);
    return n;
}

static inline void read_values(Desk desk, const float* weights, i64 queries, i64 segments, i64 dim, float* y) {
    std::memset(y, 0, sizeof(float) * queries * dim);
    i64 n = 0;
    for (i64 s = 0; s < segments; n += desk.segments[s++].count) {
        const Segment& at = desk.segments[s];
        for (i64 i = 0; i < at.count; i += 64) {
            i64 count = at.count - i < 64 ? at.count - i : 64;
            add_values(weights + n + i, desk.stride, queries, at.values + i * dim, count, dim, y);
        }
    }
}

// softmax(Q K') V of queries whose scale is in them; y `(queries, value_dim)`.
static inline void attend(Desk desk, i64 queries, i64 segments, i64 key_dim, i64 value_dim, float* y) {
    i64 n = score_all(desk, desk.query, queries, 0, segments, key_dim, desk.scores);
    for (i64 g = 0; g < queries; g++) {
        float* s = desk.scores + g * desk.stride;
        scale_row(s, n, exponentials(s, n));
    }
    read_values(desk, desk.scores, queries, segments, value_dim, y);
}

// (softmax(Q1 K1') - lambda softmax(Q2 K2')) V. The second maps' queries follow the first ones', their keys are
// key_shift behind.
static inline void attend_difference(Desk desk, i64 queries, i64 segments, i64 key_dim, i64 value_dim, i64 key_shift,
                                     float lambda, float* y) {
    float* second = desk.scores + queries * desk.stride;
    i64 n = score_all(desk, desk.query, queries, 0, segments, key_dim, desk.scores);
    score_all(desk, desk.query + queries * key_dim, queries, key_shift, segments, key_dim, second);
    for (i64 g = 0; g < queries; g++) {
        float *a = desk.scores + g * desk.stride, *b = second + g * desk.stride;
        const float first = exponentials(a, n), other = lambda * exponentials(b, n);
#pragma omp simd
        for (i64 i = 0; i < n; i++) a[i] = a[i] * first - b[i] * other;
    }
    read_values(desk, desk.scores, queries, segments, value_dim, y);
}
