// Attention of new tokens: the queries of some successive tokens of a row, and of all heads that share a key head, are
// taken together; keys and values are read where they lie (pages, rows, rings), live ones only.
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
        for (i64 left = live; left > 0; left -= page, n++) {
            const i64 block = table ? table[row * table_row + n] : row;
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

// What one thread needs to attend; `scores` has `stride` numbers for every query, `columns` is a panel. later: segments
// that the thread will probably attend to next.
struct Desk {
    float *query, *out, *columns, *scores;
    Segment *segments, *later;
    i64 stride, laters = 0;
};

// Up to LANES keys `(count, dim)` as columns of a panel; the last one stands in for missing ones.
static void as_columns(const float* keys, i64 count, i64 dim, float* panel) {
    i64 d = 0;
    for (; d + LANES <= dim; d += LANES) {
        V v[LANES];
#pragma GCC unroll 16
        for (i64 i = 0; i < LANES; i++) v[i] = load(keys + std::min(i, count - 1) * dim + d);
        turn_over(v);
#pragma GCC unroll 16
        for (i64 i = 0; i < LANES; i++) store(panel + (d + i) * PANEL, v[i]);
    }
    for (; d < dim; d++)
        for (i64 i = 0; i < LANES; i++) panel[d * PANEL + i] = keys[std::min(i, count - 1) * dim + d];
}

// As `scores`, of a panel with `halves` groups of keys, which go to out + at[0] and out + at[1].
static void panel_scores(Desk desk, const float* query, i64 queries, i64 dim, int halves, const i64* at, float* out) {
    V found[MOST_ROWS][2];
    for (i64 g = 0; g < queries; g += MOST_ROWS) {
        const i64 rows = std::min<i64>(MOST_ROWS, queries - g);
        if (halves == 2) tile_of<2>(rows, query + g * dim, dim, dim, desk.columns, PANEL, found);
        else tile_of<1>(rows, query + g * dim, dim, dim, desk.columns, PANEL, found);
        for (i64 r = 0; r < rows; r++)
            for (int half = 0; half < halves; half++) store(out + (g + r) * desk.stride + at[half], found[r][half]);
    }
}

// Asks for keys or values into the core's cache: pages lie anywhere, so the processor does not guess them. Values are
// asked for while keys are read, the next keys while values are.
static inline void fetch(const float* data, i64 size) {
    for (i64 i = 0; i < size; i += 16) __builtin_prefetch(data + i, 0, 2);
}

// Scores of all segments' keys; returns how many there are. From a few queries on it pays to turn keys over first.
static i64 score_all(Desk desk, const float* query, i64 queries, i64 key_shift, i64 segments, i64 dim, float* out) {
    i64 n = 0, at[2];
    int held = 0;
    for (i64 s = 0; s < segments; n += desk.segments[s++].count) {
        const float* keys = desk.segments[s].keys + key_shift;
        const i64 count = desk.segments[s].count;
        fetch(desk.segments[s].values, count * dim);
        if (queries < 4) {
            scores(query, queries, keys, count, dim, out + n, desk.stride);
            continue;
        }
        for (i64 i = 0; i < count; i += LANES) {
            as_columns(keys + i * dim, std::min<i64>(LANES, count - i), dim, desk.columns + held * LANES);
            at[held++] = n + i;
            if (held == 2) panel_scores(desk, query, queries, dim, held, at, out), held = 0;
        }
    }
    if (held) panel_scores(desk, query, queries, dim, held, at, out);
    return n;
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

// What the tokens of a block see of the keys in question: each misses as many at the end as there are tokens after it.
// With a window, token t misses max(0, t - slack) keys from number `window` on, too.
struct Sight {
    i64 tokens = 1, window = 0, slack = 1 << 30;
};

// Makes n scores of token t weights that are not yet divided by their sum; returns the inverse of the sum.
static inline float weigh(float* scores, i64 n, Sight sight, i64 t) {
    const i64 live = n - (sight.tokens - 1 - t);
    for (i64 i = 0; i < t - sight.slack; i++) scores[sight.window + i] = -INFINITY;
    const float scale = exponentials(scores, live);
    for (i64 i = live; i < n; i++) scores[i] = 0;
    return scale;
}

// -- values ------------------------------------------------------------------------------------------------------------
template <int U>
static void add_tile(const float* weights, i64 stride, i64 rows, const float* values, i64 count, i64 dim, float* y) {
    V found[MOST_ROWS][2];
    tile_of<U>(rows, weights, stride, count, values, dim, found);
    for (i64 r = 0; r < rows; r++)
        for (int u = 0; u < U; u++) store(y + r * dim + u * LANES, load(y + r * dim + u * LANES) + found[r][u]);
}

// y[g] += sum of weights[g][i] values[i].
static void add_values(const float* weights, i64 stride, i64 queries, const float* values, i64 count, i64 dim,
                       float* y) {
    for (i64 g = 0; g < queries; g += MOST_ROWS, weights += MOST_ROWS * stride, y += MOST_ROWS * dim) {
        const i64 rows = std::min<i64>(MOST_ROWS, queries - g);
        i64 d = 0;
        for (; d + PANEL <= dim; d += PANEL) add_tile<2>(weights, stride, rows, values + d, count, dim, y + d);
        for (; d + LANES <= dim; d += LANES) add_tile<1>(weights, stride, rows, values + d, count, dim, y + d);
        for (; d < dim; d++)
            for (i64 r = 0; r < rows; r++)
                for (i64 i = 0; i < count; i++) y[r * dim + d] += weights[r * stride + i] * values[i * dim + d];
    }
}

static inline void read_values(Desk desk, i64 queries, i64 segments, i64 dim) {
    std::memset(desk.out, 0, sizeof(float) * queries * dim);
    i64 n = 0;
    for (i64 s = 0; s < segments; n += desk.segments[s++].count) {
        const Segment& at = desk.segments[s];
        if (s < desk.laters) fetch(desk.later[s].keys, desk.later[s].count * dim);
        add_values(desk.scores + n, desk.stride, queries, at.values, at.count, dim, desk.out);
    }
}

// -- together ----------------------------------------------------------------------------------------------------------
// softmax(Q K') V of the queries on the desk, `(tokens, per token)`, whose scale is in them, into desk.out.
static inline void attend(Desk desk, Sight sight, i64 queries, i64 segments, i64 key_dim, i64 value_dim) {
    const i64 n = score_all(desk, desk.query, queries, 0, segments, key_dim, desk.scores);
    for (i64 g = 0; g < queries; g++) {
        float* s = desk.scores + g * desk.stride;
        scale_row(s, n, weigh(s, n, sight, g / (queries / sight.tokens)));
    }
    read_values(desk, queries, segments, value_dim);
}

// (softmax(Q1 K1') - lambda softmax(Q2 K2')) V. All second maps' queries follow the first ones', their keys are
// key_shift behind.
static inline void attend_difference(Desk desk, Sight sight, i64 queries, i64 segments, i64 key_dim, i64 value_dim,
                                     i64 key_shift, float lambda) {
    float* second = desk.scores + queries * desk.stride;
    const i64 n = score_all(desk, desk.query, queries, 0, segments, key_dim, desk.scores);
    score_all(desk, desk.query + queries * key_dim, queries, key_shift, segments, key_dim, second);
    for (i64 g = 0; g < queries; g++) {
        const i64 t = g / (queries / sight.tokens);
        float *a = desk.scores + g * desk.stride, *b = second + g * desk.stride;
        const float first = weigh(a, n, sight, t), other = lambda * weigh(b, n, sight, t);
#pragma omp simd
        for (i64 i = 0; i < n; i++) a[i] = a[i] * first - b[i] * other;
    }
    read_values(desk, queries, segments, value_dim);
}
