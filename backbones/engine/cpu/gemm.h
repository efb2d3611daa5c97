// Matrix products y = x W with few rows: weights are packed once, in panels of 2 * LANES columns,
// panel[k][2 * LANES], so that a register tile reads them in a line.
#pragma once

#include "team.h"

constexpr int PANEL = 2 * LANES;
constexpr int MOST_ROWS = LANES == 16 ? 8 : LANES == 8 ? 6 : 4;

// Row strides of activations: whole vectors, and odd in lines of a cache, so that rows do not meet in one set.
static inline i64 stride_of(i64 columns) { return ((columns + PANEL - 1) / PANEL * PANEL + 15) / 32 * 32 + 16; }

// Rows of a panel that are asked for ahead of their use: a processor's own guesses end with a page of memory.
constexpr int PREFETCH = 64;

// R rows times U vectors of columns of a matrix whose rows are `width` apart. Few rows are unrolled over k: a chain of
// dependent additions would wait. PANELS: behind a panel there is the next one.
template <int R, int U, bool PANELS>
static void tile(const float* x, i64 stride, i64 k, const float* w, i64 width, V (*out)[2]) {
    constexpr int K = R * U >= 8 ? 1 : 8 / (R * U);
    V acc[K][R][U] = {};
    i64 i = 0;
    for (; i + K <= k; i += K) {
#pragma GCC unroll 8
        for (int q = 0; q < K; q++) {
            V b[U];
#pragma GCC unroll 2
            for (int u = 0; u < U; u++) b[u] = load(w + (i + q) * width + u * LANES);
            if constexpr (PANELS && R >= 4)
                for (int u = 0; u < U; u++) __builtin_prefetch(w + (i + q + PREFETCH) * width + u * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 2
                for (int u = 0; u < U; u++) acc[q][r][u] += x[r * stride + i + q] * b[u];
        }
    }
    for (; i < k; i++)
        for (int r = 0; r < R; r++)
            for (int u = 0; u < U; u++) acc[0][r][u] += x[r * stride + i] * load(w + i * width + u * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int u = 0; u < U; u++) {
            V total = acc[0][r][u];
#pragma GCC unroll 8
            for (int q = 1; q < K; q++) total += acc[q][r][u];
            out[r][u] = total;
        }
}

template <int U, bool PANELS = false, int R = MOST_ROWS>
static void tile_of(i64 rows, const float* x, i64 stride, i64 k, const float* w, i64 width, V (*out)[2]) {
    if constexpr (R > 0) {
        if (rows == R) return tile<R, U, PANELS>(x, stride, k, w, width, out);
        tile_of<U, PANELS, R - 1>(rows, x, stride, k, w, width, out);
    }
}

// A phase: the product of n rows with a packed (k, columns) matrix. put(row, column, acc, vectors) takes what becomes of
// `vectors` vectors that begin at a column; where panels are split for few rows it gets one vector, else two.
template <class Put>
static void gemm(Team& team, const float* x, i64 stride, i64 n, i64 k, const float* weights, i64 columns,
                 bool may_split, Put put) {
    const i64 panels = (columns + PANEL - 1) / PANEL, tiles = (n + MOST_ROWS - 1) / MOST_ROWS;
    const bool split = may_split && panels * tiles < 6 * team.threads;
    const i64 tasks = (split ? 2 : 1) * panels * tiles;
    team.each(tasks, [&](i64 task) {
        const i64 unit = task / tiles, t = task % tiles, first = n * t / tiles, rows = n * (t + 1) / tiles - first;
        const float* from = x + first * stride;
        V out[MOST_ROWS][2];
        if (split) {
            tile_of<1, true>(rows, from, stride, k, weights + unit / 2 * k * PANEL + unit % 2 * LANES, PANEL, out);
            for (i64 r = 0; r < rows; r++) put(first + r, unit * LANES, out[r], 1);
        } else {
            tile_of<2, true>(rows, from, stride, k, weights + unit * k * PANEL, PANEL, out);
            for (i64 r = 0; r < rows; r++) put(first + r, unit * PANEL, out[r], 2);
        }
    }, std::max<i64>(4, tasks / (team.threads * 32)));
}

// What becomes of products. A scale belongs to a row (a norm whose weights are in the matrix), null for none.
struct Put {
    float* y;
    i64 stride;
    const float* scale;

    void operator()(i64 row, i64 column, const V* acc, int vectors) const {
        for (int v = 0; v < vectors; v++)
            store(y + row * stride + column + v * LANES, scale ? acc[v] * scale[row] : acc[v]);
    }
};

// Into memory without room behind its last column.
struct PutExactly {
    float* y;
    i64 stride, columns;
    const float* scale;

    void operator()(i64 row, i64 column, const V* acc, int vectors) const {
        for (int v = 0; v < vectors; v++) {
            i64 at = column + v * LANES;
            if (at < columns) store_some(y + row * stride + at, scale ? acc[v] * scale[row] : acc[v], columns - at);
        }
    }
};

struct Add {
    float* y;
    i64 stride;

    void operator()(i64 row, i64 column, const V* acc, int vectors) const {
        for (int v = 0; v < vectors; v++) {
            float* p = y + row * stride + column + v * LANES;
            store(p, load(p) + acc[v]);
        }
    }
};

// Panels of LANES columns of `up` beside the same of `gate` become one vector.
struct PutGated {
    float* y;
    i64 stride;
    const float* scale;

    void operator()(i64 row, i64 column, const V* acc, int) const {
        float s = scale ? scale[row] : 1.0f;
        store(y + row * stride + column / 2, acc[0] * s * silu(acc[1] * s));
    }
};

// log(1 + e^(x + bias)).
struct PutSoftplus {
    float* y;
    i64 stride;
    const float* bias;

    void operator()(i64 row, i64 column, const V* acc, int vectors) const {
        for (int v = 0; v < vectors; v++) {
            i64 at = column + v * LANES;
            store(y + row * stride + at, softplus(acc[v] + load(bias + at)));
        }
    }
};

// -- rows --------------------------------------------------------------------------------------------------------------
static inline float sum_of_squares(const float* x, i64 n) {
    V total = {};
    i64 i = 0;
    for (; i + LANES <= n; i += LANES) total += load(x + i) * load(x + i);
    float rest = sum(total);
    for (; i < n; i++) rest += x[i] * x[i];
    return rest;
}

static inline float inverse_rms(const float* x, i64 n, float eps) {
    return 1.0f / std::sqrt(sum_of_squares(x, n) / n + eps);
}

// Of every row, `(threads, n)`; each thread makes its own, which costs less than to wait for each other.
static inline const float* row_scales(const Team& team, float* scales, const float* x, i64 stride, i64 n, i64 columns,
                                      float eps) {
    float* own = scales + team.thread * n;
    for (i64 r = 0; r < n && !team.left(); r++) own[r] = inverse_rms(x + r * stride, columns, eps);
    return own;
}

static inline void scale_row(float* x, i64 n, float by) {
#pragma omp simd
    for (i64 i = 0; i < n; i++) x[i] *= by;
}
