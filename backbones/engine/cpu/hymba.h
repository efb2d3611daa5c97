// Hymba: attention heads and Mamba-1 heads side by side, rings for windowed layers, meta tokens before every text.
#pragma once

#include "recurrent.h"

// Weights of norms before matrices are in the matrices, the half of the average in both output norms, attention's scale
// in the rows that make queries. A = -exp(A_log). Null where a layer lacks a kind of heads.
struct HymbaLayer {
    const float *in_proj, *conv_weight, *conv_bias, *x_proj, *dt_norm, *B_norm, *C_norm, *dt_proj, *dt_bias, *A, *D,
        *attention_norm, *mamba_norm, *out_proj, *up_gate, *down;
};

// What a layer is. Indices are places among layers of a kind: with keys of their own, of these global or windowed ones,
// with Mamba heads. A layer that uses another's keys has the other's.
struct HymbaPlace {
    i64 attention, mamba, owns, global, kv_index, kind_index, ssm_index;
};

struct HymbaState {
    Cache whole, ring;
    Part conv, ssm;
    const float *meta_keys, *meta_values, *meta_conv, *meta_ssm;
    i64 rows;
};

struct Hymba {
    const Sizes& s;
    const Outer& outer;
    const HymbaLayer* layers;
    const HymbaPlace* places;
    const HymbaState& state;
    const Call& call;
    const Rows x, projected, a, y, mixed, low, dt, mid, keys, values;
    float* const scales;
    const Desks& desks;

    void run(Team& team) const {
        embed(team, s, outer, call, x);
        for (i64 l = 0; l < s.layers; l++) {
            mixer(team, l);
            gemm(team, x.data, x.stride, call.n, s.hidden, layers[l].up_gate, 2 * s.intermediate, false,
                 PutGated{mid.data, mid.stride, norms(team)});
            add(team, mid, s.intermediate, layers[l].down);
        }
        team.each(call.n, [&](i64 r) { keep_rings(r); });
        give_logits(team, s, outer, call, x, norms(team));
    }

    const float* norms(Team& team) const {
        return row_scales(team, scales, x.data, x.stride, call.n, s.hidden, s.eps);
    }

    void add(Team& team, Rows from, i64 width, const float* matrix) const {
        gemm(team, from.data, from.stride, call.n, width, matrix, s.hidden, true, Add{x.data, x.stride});
    }

    i64 attention_columns(const HymbaPlace& at) const {
        if (!at.attention) return 0;
        return s.heads * s.key_dim + (at.owns ? s.kv_heads * (s.key_dim + s.value_dim) : 0);
    }

    void mixer(Team& team, i64 l) const {
        const HymbaLayer& w = layers[l];
        const HymbaPlace& at = places[l];
        const i64 start = attention_columns(at), tasks = at.attention ? call.n * s.kv_heads : 0;
        const i64 blocks = at.mamba ? (s.inner + BLOCK - 1) / BLOCK : 0;
        gemm(team, x.data, x.stride, call.n, s.hidden, w.in_proj, start + (at.mamba ? 2 * s.inner : 0), true,
             Put{projected.data, projected.stride, norms(team)});
        team.each(tasks + call.n * blocks, [&](i64 task) {
            if (task < tasks) return attention(desks.of(team.thread), l, task / s.kv_heads, task % s.kv_heads);
            task -= tasks;
            convolution(l, task / blocks, task % blocks * BLOCK, start);
        }, 16);
        if (at.mamba) recurrence(team, l, start + s.inner);
        if (at.attention && at.mamba) team.each(call.n, [&](i64 r) { average(w, r); });
        add(team, at.attention ? a : y, at.attention ? s.heads * s.value_dim : s.inner, w.out_proj);
    }

    // -- attention -----------------------------------------------------------------------------------------------------
    void attention(Desk desk, i64 l, i64 r, i64 j) const {
        const HymbaPlace& at = places[l];
        const i64 position = call.positions[r], group = s.heads / s.kv_heads, queries = s.heads * s.key_dim;
        float* out = a[r] + j * group * s.value_dim;
        if (position < 0) {
            std::memset(out, 0, sizeof(float) * group * s.value_dim);
            return;
        }
        const float *turns = outer.turns + (position + s.meta) * 2 * s.key_dim, *from = projected[r];
        float *key = own_key(at, r, j), *value = own_value(at, r, j);
        if (at.owns) {
            turn(key, from + queries + j * s.key_dim, turns, s.key_dim, false);
            std::memcpy(value, from + queries + s.kv_heads * s.key_dim + j * s.value_dim, sizeof(float) * s.value_dim);
            if (at.global)
                keep_token(state.whole, at.kind_index, j, call.rows[r], position, key, s.key_dim, value, s.value_dim);
        }
        for (i64 g = 0; g < group; g++)
            turn(desk.query + g * s.key_dim, from + (j * group + g) * s.key_dim, turns, s.key_dim, false);
        attend(desk, group, seen(desk.segments, at, r, j), s.key_dim, s.value_dim, out);
    }

    float* own_key(const HymbaPlace& at, i64 r, i64 j) const {
        return keys[at.kv_index * call.n + r] + j * s.key_dim;
    }
    float* own_value(const HymbaPlace& at, i64 r, i64 j) const {
        return values[at.kv_index * call.n + r] + j * s.value_dim;
    }

    // Meta tokens; then the whole text, or what the ring holds within reach and the token itself.
    i64 seen(Segment* to, const HymbaPlace& at, i64 r, i64 j) const {
        const i64 position = call.positions[r], row = call.rows[r], head = at.kv_index * s.kv_heads + j;
        i64 n = 0;
        if (s.meta)
            to[n++] = {state.meta_keys + head * s.meta * s.key_dim, state.meta_values + head * s.meta * s.value_dim, s.meta};
        if (at.global) return n + state.whole.segments(at.kind_index, j, row, position + 1, to + n);
        const Cache& ring = state.ring;
        const i64 count = std::min({position, s.reach, ring.page}), slot = (position - count) % ring.page;
        const i64 first = std::min(count, ring.page - slot);
        const float *k = ring.key(at.kind_index, j, row), *v = ring.value(at.kind_index, j, row);
        if (first) to[n++] = {k + slot * s.key_dim, v + slot * s.value_dim, first};
        if (count > first) to[n++] = {k, v, count - first};
        to[n++] = {own_key(at, r, j), own_value(at, r, j), 1};
        return n;
    }

    // At the end of the step, as a new token takes the place of one that layers which share the ring still see.
    void keep_rings(i64 r) const {
        if (call.positions[r] < 0) return;
        for (i64 l = 0; l < s.layers; l++) {
            const HymbaPlace& at = places[l];
            if (!at.attention || !at.owns || at.global) continue;
            for (i64 j = 0; j < s.kv_heads; j++)
                keep_token(state.ring, at.kind_index, j, call.rows[r], call.positions[r], own_key(at, r, j), s.key_dim,
                           own_value(at, r, j), s.value_dim);
        }
    }

    // -- Mamba ---------------------------------------------------------------------------------------------------------
    void convolution(i64 l, i64 r, i64 begin, i64 start) const {
        const i64 i = places[l].ssm_index;
        const float* first = state.meta_conv ? state.meta_conv + i * (s.taps - 1) * s.inner : nullptr;
        convolve(mixed[r], projected[r] + start, state.conv.at(i, call.rows[r]), first, layers[l].conv_weight,
                 layers[l].conv_bias, s.taps, s.inner, call.positions[r], begin, std::min(s.inner, begin + BLOCK));
    }

    void recurrence(Team& team, i64 l, i64 gate) const {
        const HymbaLayer& w = layers[l];
        const i64 blocks = (s.inner + CHANNELS - 1) / CHANNELS;
        gemm(team, mixed.data, mixed.stride, call.n, s.inner, w.x_proj, s.rank + 2 * s.states, true,
             Put{low.data, low.stride, nullptr});
        team.each(call.n, [&](i64 r) {
            normalise(low[r], s.rank, w.dt_norm);
            normalise(low[r] + s.rank, s.states, w.B_norm);
            normalise(low[r] + s.rank + s.states, s.states, w.C_norm);
        });
        gemm(team, low.data, low.stride, call.n, s.rank, w.dt_proj, s.inner, true,
             PutSoftplus{dt.data, dt.stride, w.dt_bias});
        team.each(call.n * blocks, [&](i64 task) { channels(l, task / blocks, task % blocks * CHANNELS, gate); });
    }

    void normalise(float* v, i64 n, const float* weight) const {
        const float scale = inverse_rms(v, n, s.eps);
        for (i64 i = 0; i < n; i++) v[i] *= scale * weight[i];
    }

    void channels(i64 l, i64 r, i64 begin, i64 gate) const {
        const HymbaLayer& w = layers[l];
        const i64 position = call.positions[r], i = places[l].ssm_index, end = std::min(s.inner, begin + CHANNELS);
        if (position < 0) {
            std::memset(y[r] + begin, 0, sizeof(float) * (end - begin));
            return;
        }
        float* h = state.ssm.at(i, call.rows[r]);
        const float* first = state.meta_ssm ? state.meta_ssm + i * s.inner * s.states : nullptr;
        const float *before = position ? h : first, *B = low[r] + s.rank;
        for (i64 c = begin; c < end; c++) {
            const float in = mixed[r][c];
            const float out = channel_step(in, dt[r][c], w.A + c * s.states, B, B + s.states,
                                           before ? before + c * s.states : nullptr, h + c * s.states, s.states);
            y[r][c] = (out + w.D[c] * in) * silu(projected[r][gate + c]);
        }
    }

    // Into a; both norms hold half of their weight.
    void average(const HymbaLayer& w, i64 r) const {
        float *one = a[r], *other = y[r];
        const float first = inverse_rms(one, s.inner, s.eps), second = inverse_rms(other, s.inner, s.eps);
#pragma omp simd
        for (i64 i = 0; i < s.inner; i++)
            one[i] = one[i] * first * w.attention_norm[i] + other[i] * second * w.mamba_norm[i];
    }

    static constexpr i64 BLOCK = 256, CHANNELS = 64;
};

static i64 hymba_step(const Sizes& s, const Outer& outer, const HymbaLayer* layers, const HymbaPlace* places,
                      const HymbaState& state, const Call& call) {
    thread_local Phases phases;
    thread_local Buffer x, projected, a, y, mixed, low, dt, mid, keys, values, scales, desk;
    if (const i64 wrong = mistake(s, &state.whole, state.rows, call)) return wrong;
    i64 sources = 0;
    for (i64 l = 0; l < s.layers; l++) sources += places[l].attention && places[l].owns;
    const i64 longest = s.meta + std::max(state.whole.length, state.ring.page + 1);
    const i64 wide = s.heads * s.key_dim + s.kv_heads * (s.key_dim + s.value_dim) + 2 * s.inner, n = call.n;
    const Desks desks(desk, call.threads, s.heads / s.kv_heads, s.key_dim, longest,
                      state.whole.length / state.whole.page + 5);
    const Hymba model{s, outer, layers, places, state, call, Rows::in(x, n, s.hidden), Rows::in(projected, n, wide),
                      Rows::in(a, n, s.heads * s.value_dim), Rows::in(y, n, s.inner), Rows::in(mixed, n, s.inner),
                      Rows::in(low, n, s.rank + 2 * s.states), Rows::in(dt, n, s.inner),
                      Rows::in(mid, n, s.intermediate), Rows::in(keys, sources * n, s.kv_heads * s.key_dim),
                      Rows::in(values, sources * n, s.kv_heads * s.value_dim), scales.get(call.threads * n), desks};
    together(phases, 10 * s.layers + 3, call.threads, [&](Team& team) { model.run(team); });
    return NOTHING;
}
