// What recurrent layers do with one token: short convolutions and the steps of Mamba-1 and Mamba-2.
#pragma once

#include "step.h"

// A state with a row axis; strides in floats, what is behind the row is dense.
struct Part {
    float* data;
    i64 layer, row;

    float* at(i64 l, i64 r) const { return data + l * layer + r * row; }
};

// silu(convolution) of channels begin .. end - 1; the window takes in x.
// weight: `(taps, channels)`, the token's own tap last; window `(taps - 1, channels)`, the oldest first. Before position
// 0 there is `first`, of the window's shape, or nothing. Padding (position -1) leaves the window as it is.
static inline void convolve(float* y, const float* x, float* window, const float* first, const float* weight,
                            const float* bias, i64 taps, i64 channels, i64 position, i64 begin, i64 end) {
    const float* own = weight + (taps - 1) * channels;
#pragma omp simd
    for (i64 c = begin; c < end; c++) y[c] = (bias ? bias[c] : 0.0f) + own[c] * x[c];
    for (i64 back = 1; back < taps; back++) {
        const float* tap = weight + (taps - 1 - back) * channels;
        const float* seen = back <= position ? window + (taps - 1 - back) * channels
                            : first          ? first + (taps - 1 + position - back) * channels
                                             : nullptr;
        if (!seen || position < 0) continue;
#pragma omp simd
        for (i64 c = begin; c < end; c++) y[c] += tap[c] * seen[c];
    }
    for (i64 c = begin; c < end; c += LANES) {
        V v = end - c < LANES ? load_some(y + c, end - c, 0) : load(y + c);
        store_some(y + c, silu(v), end - c);
    }
    if (position < 0) return;
    for (i64 t = 0; t + 1 < taps; t++) {
        const float* from = t + 2 < taps ? window + (t + 1) * channels : x;
        std::memcpy(window + t * channels + begin, from + begin, sizeof(float) * (end - begin));
    }
}

// Mamba-2, one head: S = decay S + (dt x) B', y = S C; S `(dim, states)`.
static inline void matrix_step(float* y, const float* x, float dt, float decay, const float* B, const float* C,
                               float* S, i64 dim, i64 states) {
    for (i64 p = 0; p < dim; p++) {
        float* s = S + p * states;
        const float in = dt * x[p];
        V total = {};
        i64 i = 0;
        for (; i + LANES <= states; i += LANES) {
            V next = load(s + i) * decay + in * load(B + i);
            store(s + i, next);
            total += next * load(C + i);
        }
        float rest = sum(total);
        for (; i < states; i++) {
            s[i] = s[i] * decay + in * B[i];
            rest += s[i] * C[i];
        }
        y[p] = rest;
    }
}

// Mamba-1, one channel: h = exp(dt A) h + (dt x) B, y = h C. before: what h was, or what stands before position 0.
static inline float channel_step(float x, float dt, const float* A, const float* B, const float* C,
                                 const float* before, float* h, i64 states) {
    float y = 0;
    V total = {};
    for (i64 i = 0; i < states; i += LANES) {
        const i64 left = states - i;
        if (left >= LANES) {
            V next = exp(load(A + i) * dt) * (before ? load(before + i) : V{}) + dt * x * load(B + i);
            store(h + i, next);
            total += next * load(C + i);
        } else {
            for (i64 j = i; j < states; j++) {
                h[j] = std::exp(A[j] * dt) * (before ? before[j] : 0.0f) + dt * x * B[j];
                y += h[j] * C[j];
            }
        }
    }
    return y + sum(total);
}
