// Decoders of attention and gated feed-forward layers: the control, nGPT, the Differential Transformer V1 and V2.
#pragma once

#include "parts.h"

enum Kind : i64 { PLAIN, NGPT, DIFFERENTIAL_1, DIFFERENTIAL_2 };

// Weights of RMSNorms are in the matrices that read them; attention's scale is in the rows that make queries (nGPT: in
// query_scale). Null where a kind has none.
struct DecoderLayer {
    const float *qkv, *query_scale, *lambda, *output, *attention_alpha, *up_gate, *down, *mlp_alpha;
};

struct Decoder {
    const Sizes& s;
    const Outer& outer;
    const DecoderLayer* layers;
    const Cache& cache;
    const Call& call;
    const Rows x, qkv, read, mid, picked;
    float* const scales;
    const Desks& desks;
    const std::vector<Span>& blocks;  // tokens that attend together
    const bool single;                // every row has one token

    static i64 maps(const Sizes& s) { return s.kind >= DIFFERENTIAL_1 ? 2 : 1; }
    static i64 key_heads(const Sizes& s) { return s.kind == DIFFERENTIAL_1 ? 2 * s.kv_heads : s.kv_heads; }
    static i64 key_start(const Sizes& s) { return s.heads * maps(s) * s.key_dim; }
    static i64 value_start(const Sizes& s) { return key_start(s) + key_heads(s) * s.key_dim; }
    static i64 gate_start(const Sizes& s) { return value_start(s) + s.kv_heads * s.value_dim; }
    static i64 projected(const Sizes& s) { return gate_start(s) + (s.kind == DIFFERENTIAL_2 ? s.heads : 0); }

    void run(Team& team) const {
        embed(team, s, outer, call, x);
        for (i64 l = 0; l < s.layers; l++) layer(team, l);
        const Rows last = wanted_rows(team, s, call, x, picked);
        give_logits(team, s, outer, call, last, norms(team, last, call.outputs));
    }

    void layer(Team& team, i64 l) const {
        const DecoderLayer& w = layers[l];
        gemm(team, x.data, x.stride, call.n, s.hidden, w.qkv, projected(s), true,
             Put{qkv.data, qkv.stride, norms(team, x, call.n)});
        if (!single) team.each(call.n * s.kv_heads, [&](i64 task) { keep(l, task / s.kv_heads, task % s.kv_heads); });
        team.each(blocks.size() * s.kv_heads, [&](i64 task) {
            attention(desks.of(team.thread), l, task);
        }, 16);
        into_stream(team, read, s.heads * s.value_dim, w.output, w.attention_alpha);
        gemm(team, x.data, x.stride, call.n, s.hidden, w.up_gate, 2 * s.intermediate, false,
             PutGated{mid.data, mid.stride, norms(team, x, call.n)});
        into_stream(team, mid, s.intermediate, w.down, w.mlp_alpha);
    }

    const float* norms(Team& team, Rows of, i64 n) const {
        if (s.kind == NGPT) return nullptr;
        return row_scales(team, scales, of.data, of.stride, n, s.hidden, s.eps);
    }

    // Adds a product to the residual stream; nGPT moves the stream towards it instead, in memory that qkv has left.
    void into_stream(Team& team, Rows from, i64 width, const float* matrix, const float* alpha) const {
        if (s.kind != NGPT) {
            gemm(team, from.data, from.stride, call.n, width, matrix, s.hidden, true, Add{x.data, x.stride});
        } else {
            gemm(team, from.data, from.stride, call.n, width, matrix, s.hidden, true,
                 Put{qkv.data, qkv.stride, nullptr});
            team.each(call.n, [&](i64 r) { towards(x[r], qkv[r], alpha); });
        }
    }

    // h = unit vector along h + alpha (unit vector along y - h).
    void towards(float* h, const float* y, const float* alpha) const {
        const float scale = 1.0f / std::max(std::sqrt(sum_of_squares(y, s.hidden)), 1e-12f);
#pragma omp simd
        for (i64 i = 0; i < s.hidden; i++) h[i] += alpha[i] * (y[i] * scale - h[i]);
        scale_row(h, s.hidden, 1.0f / std::max(std::sqrt(sum_of_squares(h, s.hidden)), 1e-12f));
    }

    const float* turns(i64 r) const { return outer.turns + call.positions[r] * 2 * s.key_dim; }

    // A token's keys and value of head j go into the state. With one token a row this is left to `attention`, which
    // saves a phase.
    void keep(i64 l, i64 r, i64 j) const {
        const float *key = qkv[r] + key_start(s), *value = qkv[r] + value_start(s) + j * s.value_dim;
        const i64 row = call.rows[r], position = call.positions[r];
        if (position < 0) return;
        if (s.kind == DIFFERENTIAL_1) {
            remember(l, row, position, 2 * j, key, turns(r), nullptr);
            remember(l, row, position, 2 * j + 1, key, turns(r), nullptr);
            keep_token(cache, l, j, row, position, nullptr, 0, value, s.value_dim);
        } else {
            remember(l, row, position, j, key, turns(r), value);
        }
    }

    void attention(Desk desk, i64 l, i64 task) const {
        const Span block = blocks[task / s.kv_heads];
        const i64 j = task % s.kv_heads;
        const i64 group = s.heads / s.kv_heads, tokens = block.size(), queries = tokens * group;
        const i64 first = block.begin, live = call.positions[block.end - 1] + 1;
        if (single) keep(l, first, j);
        if (!live) {
            std::memset(read[first] + j * group * s.value_dim, 0, sizeof(float) * group * s.value_dim);
            return;
        }
        for (i64 t = 0; t < tokens; t++) ask(desk, l, first + t, j * group * maps(s), t, tokens);
        const i64 segments = segments_of(desk.segments, l, j, call.rows[first], live);
        if (single && task + 1 < i64(blocks.size()) * s.kv_heads) {
            const i64 r = blocks[(task + 1) / s.kv_heads].begin, head = (task + 1) % s.kv_heads;
            desk.laters = segments_of(desk.later, l, head, call.rows[r], call.positions[r] + 1);
        }
        if (s.kind == DIFFERENTIAL_1) {
            attend_difference(desk, {tokens}, queries, segments, s.key_dim, s.value_dim, cache.key_head,
                              *layers[l].lambda);
        } else {
            attend(desk, {tokens}, maps(s) * queries, segments, s.key_dim, s.value_dim);
        }
        const i64 width = (s.kind == DIFFERENTIAL_2 ? 2 : 1) * s.value_dim;
        for (i64 g = 0; g < queries; g++) answer(first + g / group, j * group + g % group, desk.out + g * width);
    }

    i64 segments_of(Segment* to, i64 l, i64 j, i64 row, i64 live) const {
        const i64 n = cache.segments(l, j, row, live, to);
        if (s.kind != DIFFERENTIAL_1) return n;
        // Pairs of key heads stand beside each other; `segments` took a key head for every value head.
        for (i64 i = 0; i < n; i++) to[i].keys += j * cache.key_head;
        return n;
    }

    void remember(i64 l, i64 row, i64 position, i64 head, const float* keys, const float* turns,
                  const float* value) const {
        float turned[MOST_HEAD];
        turn(turned, keys + head * s.key_dim, turns, s.key_dim, s.interleaved);
        if (s.kind == NGPT) scale_row(turned, s.key_dim, inverse_rms(turned, s.key_dim, 1e-24f));
        keep_token(cache, l, head, row, position, turned, s.key_dim, value, s.value_dim);
    }

    // Puts the turned queries of a block's token t onto the desk; V1: those of first maps before those of second ones.
    void ask(Desk desk, i64 l, i64 r, i64 first, i64 t, i64 tokens) const {
        const i64 queries = s.heads / s.kv_heads * maps(s), half = queries / 2;
        for (i64 g = 0; g < queries; g++) {
            const i64 head = first + g;
            const i64 place = s.kind == DIFFERENTIAL_1 ? (g % 2 * tokens + t) * half + g / 2 : t * queries + g;
            float* q = desk.query + place * s.key_dim;
            turn(q, qkv[r] + head * s.key_dim, turns(r), s.key_dim, s.interleaved);
            if (s.kind != NGPT) continue;
            const float scale = inverse_rms(q, s.key_dim, 1e-24f);
            const float* by = layers[l].query_scale + head * s.key_dim;
#pragma omp simd
            for (i64 i = 0; i < s.key_dim; i++) q[i] *= scale * by[i];
        }
    }

    // What becomes of what a head has read. V2: map 2 i less a gate's share of map 2 i + 1.
    void answer(i64 r, i64 head, const float* found) const {
        float* y = read[r] + head * s.value_dim;
        if (s.kind == DIFFERENTIAL_2) {
            const float gate = 1.0f / (1.0f + std::exp(-qkv[r][gate_start(s) + head])), *other = found + s.value_dim;
#pragma omp simd
            for (i64 i = 0; i < s.value_dim; i++) y[i] = found[i] - gate * other[i];
            return;
        }
        std::memcpy(y, found, sizeof(float) * s.value_dim);
        if (s.kind == DIFFERENTIAL_1) scale_row(y, s.value_dim, inverse_rms(y, s.value_dim, s.eps));
    }
};

static void decoder_part(const Sizes& s, const Outer& outer, const DecoderLayer* layers, const Cache& cache,
                         const Call& call) {
    thread_local Phases phases;
    thread_local Buffer x, qkv, read, mid, picked, scales, desk;
    thread_local std::vector<Span> spans;
    const i64 queries = s.heads / s.kv_heads * Decoder::maps(s), pages = cache.length / cache.page + 1;
    const bool single = i64(cut(call, call.n, spans).size()) == call.n;
    const i64 block = single ? 1 : tokens_of_block(queries);
    const Desks desks(desk, call.threads, queries * block, s.key_dim, s.value_dim, cache.length, pages);
    const Decoder decoder{s, outer, layers, cache, call, Rows::in(x, call.n, s.hidden),
                          Rows::in(qkv, call.n, std::max(Decoder::projected(s), s.hidden)),
                          Rows::in(read, call.n, s.heads * s.value_dim), Rows::in(mid, call.n, s.intermediate),
                          Rows::in(picked, call.outputs, s.hidden), scales.get(call.threads * call.n), desks,
                          cut(call, block, spans), single};
    together(phases, 8 * s.layers + 3, call.threads, [&](Team& team) { decoder.run(team); });
}

static i64 decoder_step(const Sizes& s, const Outer& outer, const DecoderLayer* layers, const Cache& cache,
                        const Call& call) {
    if (const i64 wrong = mistake(s, &cache, cache.rows, call)) return wrong;
    in_parts(call, [&](const Call& part) { decoder_part(s, outer, layers, cache, part); });
    return NOTHING;
}
