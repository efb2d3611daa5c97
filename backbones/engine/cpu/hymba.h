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
    const Rows x, projected, a, y, mixed, low, dt, mid, picked;
    float *const keys, *const values;  // of the call's tokens: `(layers with keys, kv_heads, n, dim)`
    float* const scales;
    const Desks& desks;
    const std::vector<Span>& spans;   // rows
    const std::vector<Span>& blocks;  // tokens that attend together

    void run(Team& team) const {
        embed(team, s, outer, call, x);
        for (i64 l = 0; l < s.layers; l++) {
            mixer(team, l);
            gemm(team, x.data, x.stride, call.n, s.hidden, layers[l].up_gate, 2 * s.intermediate, false,
                 PutGated{mid.data, mid.stride, norms(team, x, call.n)});
            add(team, mid, s.intermediate, layers[l].down);
        }
        team.each(spans.size(), [&](i64 span) { keep_rings(spans[span]); });
        const Rows last = wanted_rows(team, s, call, x, picked);
        give_logits(team, s, outer, call, last, norms(team, last, call.outputs));
    }

    const float* norms(Team& team, Rows of, i64 n) const {
        return row_scales(team, scales, of.data, of.stride, n, s.hidden, s.eps);
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
        const i64 start = attention_columns(at), tasks = at.attention ? i64(blocks.size()) * s.kv_heads : 0;
        const i64 parts = at.mamba ? (s.inner + BLOCK - 1) / BLOCK : 0, inputs = spans.size() * parts;
        const bool keeps = at.attention && at.owns, alone = i64(spans.size()) == call.n;
        gemm(team, x.data, x.stride, call.n, s.hidden, w.in_proj, start + (at.mamba ? 2 * s.inner : 0), true,
             Put{projected.data, projected.stride, norms(team, x, call.n)});
        if (keeps && !alone) team.each(call.n * s.kv_heads, [&](i64 t) { keep(at, t / s.kv_heads, t % s.kv_heads); });
        team.each(inputs + tasks, [&](i64 task) {
            if (task < inputs) return convolution(l, spans[task / parts], task % parts * BLOCK, start);
            const i64 block = (task - inputs) / s.kv_heads, head = (task - inputs) % s.kv_heads;
            if (keeps && alone) keep(at, blocks[block].begin, head);
            attention(desks.of(team.thread), at, blocks[block], head);
        }, 16);
        if (at.mamba) recurrence(team, l, start + s.inner);
        if (at.attention && at.mamba) team.each(call.n, [&](i64 r) { average(w, r); });
        add(team, at.attention ? a : y, at.attention ? s.heads * s.value_dim : s.inner, w.out_proj);
    }

    // -- attention -----------------------------------------------------------------------------------------------------
    const float* turns(i64 r) const { return outer.turns + (call.positions[r] + s.meta) * 2 * s.key_dim; }

    float* own_key(const HymbaPlace& at, i64 r, i64 j) const {
        return keys + ((at.kv_index * s.kv_heads + j) * call.n + r) * s.key_dim;
    }
    float* own_value(const HymbaPlace& at, i64 r, i64 j) const {
        return values + ((at.kv_index * s.kv_heads + j) * call.n + r) * s.value_dim;
    }

    // A token's key and value; those of global layers go into the state at once.
    void keep(const HymbaPlace& at, i64 r, i64 j) const {
        if (call.positions[r] < 0) return;
        const float *from = projected[r] + s.heads * s.key_dim, *value = from + s.kv_heads * s.key_dim;
        turn(own_key(at, r, j), from + j * s.key_dim, turns(r), s.key_dim, false);
        std::memcpy(own_value(at, r, j), value + j * s.value_dim, sizeof(float) * s.value_dim);
        if (at.global) store_own(state.whole, at, r, j);
    }

    void store_own(const Cache& cache, const HymbaPlace& at, i64 r, i64 j) const {
        keep_token(cache, at.kind_index, j, call.rows[r], call.positions[r], own_key(at, r, j), s.key_dim,
                   own_value(at, r, j), s.value_dim);
    }

    void attention(Desk desk, const HymbaPlace& at, Span block, i64 j) const {
        const i64 first = block.begin, group = s.heads / s.kv_heads, tokens = block.size();
        const i64 wide = group * s.value_dim;
        if (call.positions[first] < 0) {
            std::memset(a[first] + j * wide, 0, sizeof(float) * wide);
            return;
        }
        for (i64 t = 0; t < tokens; t++)
            for (i64 g = 0; g < group; g++)
                turn(desk.query + (t * group + g) * s.key_dim, projected[first + t] + (j * group + g) * s.key_dim,
                     turns(first + t), s.key_dim, false);
        Sight sight{tokens};
        if (!at.global) sight = {tokens, s.meta, std::max<i64>(0, reach() - call.positions[first])};
        attend(desk, sight, tokens * group, seen(desk.segments, at, block, j), s.key_dim, s.value_dim);
        for (i64 t = 0; t < tokens; t++)
            std::memcpy(a[first + t] + j * wide, desk.out + t * wide, sizeof(float) * wide);
    }

    // Text tokens before itself that a token sees in a windowed layer.
    i64 reach() const { return std::min(s.reach, state.ring.page); }

    // Meta tokens; then the text up to the block's last token, in windowed layers from where its first one sees: what
    // the ring holds of it, and the call's own.
    i64 seen(Segment* to, const HymbaPlace& at, Span block, i64 j) const {
        const i64 row = call.rows[block.begin], head = at.kv_index * s.kv_heads + j;
        i64 n = 0;
        const float *k = state.meta_keys + head * s.meta * s.key_dim;
        const float *v = state.meta_values + head * s.meta * s.value_dim;
        if (s.meta) to[n++] = {k, v, s.meta};
        if (at.global)
            return n + state.whole.segments(at.kind_index, j, row, call.positions[block.end - 1] + 1, to + n);
        const i64 start = call.positions[block.first], from = std::max<i64>(0, call.positions[block.begin] - reach());
        const Cache& ring = state.ring;
        k = ring.key(at.kind_index, j, row), v = ring.value(at.kind_index, j, row);
        for (i64 p = from; p < start;) {
            const i64 slot = p % ring.page, count = std::min(start - p, ring.page - slot);
            to[n++] = {k + slot * s.key_dim, v + slot * s.value_dim, count};
            p += count;
        }
        const i64 own = block.first + std::max<i64>(0, from - start);
        to[n++] = {own_key(at, own, j), own_value(at, own, j), block.end - own};
        return n;
    }

    // At the end of the step, as a new token takes the place of one that layers which share the ring still see.
    void keep_rings(Span span) const {
        if (call.positions[span.begin] < 0) return;
        const i64 first = std::max(span.begin, span.end - state.ring.page);
        for (i64 l = 0; l < s.layers; l++) {
            const HymbaPlace& at = places[l];
            if (!at.attention || !at.owns || at.global) continue;
            for (i64 j = 0; j < s.kv_heads; j++)
                for (i64 r = first; r < span.end; r++) store_own(state.ring, at, r, j);
        }
    }

    // -- Mamba ---------------------------------------------------------------------------------------------------------
    void convolution(i64 l, Span span, i64 begin, i64 start) const {
        const i64 i = places[l].ssm_index;
        const float* first = state.meta_conv ? state.meta_conv + i * (s.taps - 1) * s.inner : nullptr;
        const Filter filter{layers[l].conv_weight, layers[l].conv_bias, first, s.taps, s.inner};
        convolve(mixed, {projected.data + start, projected.stride}, span, call.positions[span.begin], filter,
                 state.conv.at(i, call.rows[span.begin]), begin, std::min(s.inner, begin + BLOCK));
    }

    void recurrence(Team& team, i64 l, i64 gate) const {
        const HymbaLayer& w = layers[l];
        const i64 parts = (s.inner + CHANNELS - 1) / CHANNELS;
        gemm(team, mixed.data, mixed.stride, call.n, s.inner, w.x_proj, s.rank + 2 * s.states, true,
             Put{low.data, low.stride, nullptr});
        team.each(call.n, [&](i64 r) {
            normalise(low[r], s.rank, w.dt_norm);
            normalise(low[r] + s.rank, s.states, w.B_norm);
            normalise(low[r] + s.rank + s.states, s.states, w.C_norm);
        });
        gemm(team, low.data, low.stride, call.n, s.rank, w.dt_proj, s.inner, true,
             PutSoftplus{dt.data, dt.stride, w.dt_bias});
        team.each(spans.size() * parts, [&](i64 task) {
            const Span span = spans[task / parts];
            for (i64 r = span.begin; r < span.end; r++) channels(l, r, task % parts * CHANNELS, gate);
        });
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
        const float *before = position ? h : first, *B = low[r] + s.rank, *C = B + s.states;
        for (i64 c = begin; c < end; c += LANES) {
            const i64 count = std::min<i64>(LANES, end - c), at = c * s.states;
            const V out = channels_step(mixed[r] + c, dt[r] + c, count, w.A + at, B, C, before ? before + at : nullptr,
                                        h + at, s.states);
            const V own = load(w.D + c) * load(mixed[r] + c);
            store_some(y[r] + c, (out + own) * silu(load(projected[r] + gate + c)), count);
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

    static constexpr i64 BLOCK = 64, CHANNELS = 32;
};

static void hymba_part(const Sizes& s, const Outer& outer, const HymbaLayer* layers, const HymbaPlace* places,
                       const HymbaState& state, const Call& call) {
    thread_local Phases phases;
    thread_local Buffer x, projected, a, y, mixed, low, dt, mid, picked, keys, values, scales, desk;
    thread_local std::vector<Span> spans, blocks;
    i64 sources = 0;
    for (i64 l = 0; l < s.layers; l++) sources += places[l].attention && places[l].owns;
    const i64 n = call.n, group = s.heads / s.kv_heads, heads = sources * s.kv_heads;
    const i64 block = i64(cut(call, n, spans).size()) == n ? 1 : tokens_of_block(group);
    const i64 longest = s.meta + std::max(state.whole.length, state.ring.page + block);
    const i64 wide = s.heads * s.key_dim + s.kv_heads * (s.key_dim + s.value_dim) + 2 * s.inner;
    const Desks desks(desk, call.threads, block * group, s.key_dim, s.value_dim, longest,
                      state.whole.length / state.whole.page + 5);
    const Hymba model{s, outer, layers, places, state, call, Rows::in(x, n, s.hidden), Rows::in(projected, n, wide),
                      Rows::in(a, n, s.heads * s.value_dim), Rows::in(y, n, s.inner), Rows::in(mixed, n, s.inner),
                      Rows::in(low, n, s.rank + 2 * s.states), Rows::in(dt, n, s.inner),
                      Rows::in(mid, n, s.intermediate), Rows::in(picked, call.outputs, s.hidden),
                      keys.get(heads * n * s.key_dim), values.get(heads * n * s.value_dim),
                      scales.get(call.threads * n), desks, spans, cut(call, block, blocks)};
    together(phases, 11 * s.layers + 4, call.threads, [&](Team& team) { model.run(team); });
}

static i64 hymba_step(const Sizes& s, const Outer& outer, const HymbaLayer* layers, const HymbaPlace* places,
                      const HymbaState& state, const Call& call) {
    if (const i64 wrong = mistake(s, &state.whole, state.rows, call)) return wrong;
    in_parts(call, [&](const Call& part) { hymba_part(s, outer, layers, places, state, part); });
    return NOTHING;
}
