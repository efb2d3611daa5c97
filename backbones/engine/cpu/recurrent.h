// What recurrent layers do with one token: short convolutions and the steps of Mamba-1 and Mamba-2.
#pragma once

#include "parts.h"

// A state with a row axis; strides in floats, what is behind the row is dense.
struct Part {
    float* data;
    i64 layer, row;

    float* at(i64 l, i64 r) const { return data + l * layer + r * row; }
};

// A short convolution. weight: `(taps, channels)`, the token's own tap last. Before position 0 there is `first`,
// `(taps - 1, channels)`, or nothing.
struct Filter {
    const float *weight, *bias, *first;
    i64 taps, channels;
};

// silu(convolution) of a row's tokens, channels begin .. end - 1; the window, `(taps - 1, channels)` and the oldest
// first, takes in x. position: of the first token. Padding (position -1) leaves no trace.
static inline void convolve(Rows y, Rows x, Span span, i64 position, const Filter& f, float* window, i64 begin,
                            i64 end) {
    const i64 held = f.taps - 1;
    if (position < 0) return;
    auto input = [&](i64 r, i64 back) -> const float* {
        const i64 t = r - span.begin;
        if (back > position + t) return f.first ? f.first + (held + position + t - back) * f.channels : nullptr;
        return back > t ? window + (held + t - back) * f.channels : x[r - back];
    };
    for (i64 c = begin; c < end; c += LANES) {
        const i64 count = std::min<i64>(LANES, end - c);
        auto at = [&](const float* p) { return count < LANES ? load_some(p + c, count, 0) : load(p + c); };
        for (i64 r = span.begin; r < span.end; r++) {
            V total = f.bias ? at(f.bias) : V{};
            for (i64 back = 0; back <= held; back++)
                if (const float* in = input(r, back)) total += at(f.weight + (held - back) * f.channels) * at(in);
            store_some(y[r] + c, silu(total), count);
        }
    }
    for (i64 slot = 0; slot < held; slot++) {
        const i64 t = slot + span.size() - held;
        const float* from = t < 0 ? window + (slot + span.size()) * f.channels : x[span.begin + t];
        std::memcpy(window + slot * f.channels + begin, from + begin, sizeof(float) * (end - begin));
    }
}

// One row of `matrix_step`'s S; y is the sum of the result's lanes.
static inline V row_step(float* s, float decay, float in, const float* B, const float* C, i64 states) {
    V total = {};
    for (i64 i = 0; i < states; i += LANES) {
        const V next = load(s + i) * decay + in * load(B + i);
        store(s + i, next);
        total += next * load(C + i);
    }
    return total;
}

// Mamba-2, one head: S = decay S + (dt x) B', y = S C; S `(dim, states)`.
static inline void matrix_step(float* y, const float* x, float dt, float decay, const float* B, const float* C,
                               float* S, i64 dim, i64 states) {
    i64 p = 0;
    for (; p + LANES <= dim && states % LANES == 0; p += LANES) {
        V totals[LANES];
#pragma GCC unroll 16
        for (int j = 0; j < LANES; j++) totals[j] = row_step(S + (p + j) * states, decay, dt * x[p + j], B, C, states);
        store(y + p, lane_sums(totals));
    }
    for (; p < dim; p++) {
        float *s = S + p * states, rest = 0;
        const i64 whole = states / LANES * LANES;
        const V total = row_step(s, decay, dt * x[p], B, C, whole);
        for (i64 i = whole; i < states; i++) {
            s[i] = s[i] * decay + dt * x[p] * B[i];
            rest += s[i] * C[i];
        }
        y[p] = sum(total) + rest;
    }
}

// Mamba-1, one channel: h = exp(dt A) h + (dt x) B, y = h C, which is the sum of the result's lanes. in: dt x. before:
// what h was, or null. VECTORS: of states, 0 for any number of them.
template <int VECTORS>
static inline V channel_step(float dt, float in, const float* A, const float* B, const float* C, const float* before,
                             float* h, i64 states) {
    V total = {};
    const i64 whole = VECTORS ? VECTORS * LANES : states / LANES * LANES;
    for (i64 i = 0; i < whole; i += LANES) {
        const V own = in * load(B + i);
        const V next = before ? exp(load(A + i) * dt) * load(before + i) + own : own;
        store(h + i, next);
        total += next * load(C + i);
    }
    for (i64 i = whole; !VECTORS && i < states; i++) {
        h[i] = (before ? std::exp(A[i] * dt) * before[i] : 0.0f) + in * B[i];
        total[0] += h[i] * C[i];
    }
    return total;
}

template <int VECTORS>
static V all_channels(const float* dt, V in, const float* A, const float* B, const float* C, const float* before,
                      float* h) {
    constexpr i64 states = VECTORS * LANES;
    V totals[LANES];
#pragma GCC unroll 16
    for (int j = 0; j < LANES; j++)
        totals[j] = channel_step<VECTORS>(dt[j], in[j], A + j * states, B, C, before ? before + j * states : nullptr,
                                          h + j * states, states);
    return lane_sums(totals);
}

// LANES channels, of which the first `count` exist; a channel's `(states)` of A, before and h follow the last one's.
static inline V channels_step(const float* x, const float* dt, i64 count, const float* A, const float* B,
                              const float* C, const float* before, float* h, i64 states) {
    const V in = load(dt) * load(x);
    if (count == LANES && states == LANES) return all_channels<1>(dt, in, A, B, C, before, h);
    if (count == LANES && states == 2 * LANES) return all_channels<2>(dt, in, A, B, C, before, h);
    V totals[LANES] = {};
    for (i64 j = 0; j < count; j++)
        totals[j] = channel_step<0>(dt[j], in[j], A + j * states, B, C, before ? before + j * states : nullptr,
                                    h + j * states, states);
    return lane_sums(totals);
}
