// What every architecture's step is made of: the call, its checks, its memory.
#pragma once

#include <new>

#include "attention.h"

// n tokens. Those of a row stand side by side, at successive positions. Logits are wanted of some tokens, or, where
// `wanted` is null, of all; it counts the first token as number `start`. Python's `library.Call` is the same structure.
struct Call {
    i64 n, threads, outputs;
    const i64 *ids, *positions, *rows, *wanted;
    float* logits;
    i64 logits_stride, start;
};

// Tokens begin .. end - 1, of one row whose tokens in the call begin with `first`.
struct Span {
    i64 begin, end, first;

    i64 size() const { return end - begin; }
};

// A call's rows, in spans of at most `most` tokens.
static const std::vector<Span>& cut(const Call& call, i64 most, std::vector<Span>& spans) {
    spans.clear();
    for (i64 r = 0, first = 0; r < call.n; r++) {
        if (r && call.rows[r] != call.rows[r - 1]) first = r;
        if (r == first || spans.back().size() == most) spans.push_back({r, r, first});
        spans.back().end++;
    }
    return spans;
}

// Python's `library.Sizes` is the same structure.
struct Sizes {
    i64 layers, hidden, intermediate, vocab, heads, kv_heads, key_dim, value_dim, kind, interleaved, turns, meta;
    i64 inner, conv, taps, ssm_heads, ssm_dim, states, groups, norm_groups, rank, reach;
    double eps;
};

// Matrices outside the layers. turns: `(positions, 4, key_dim / 2)`, see `turn`.
struct Outer {
    const float *embedding, *lm_head, *turns;
};

constexpr i64 MOST_HEAD = 512;

// Floats that stay allocated from step to step.
class Buffer {
  public:
    ~Buffer() { release(); }
    float* get(i64 size) {
        if (size > size_) {
            release();
            data_ = static_cast<float*>(::operator new(sizeof(float) * size, std::align_val_t(64)));
            size_ = size;
            std::memset(data_, 0, sizeof(float) * size);
        }
        return data_;
    }

  private:
    void release() {
        if (data_) ::operator delete(data_, std::align_val_t(64));
    }
    float* data_ = nullptr;
    i64 size_ = 0;
};

// Activations `(n, columns)` with the stride that `stride_of` gives.
struct Rows {
    float* data;
    i64 stride;

    static Rows in(Buffer& buffer, i64 n, i64 columns) {
        return {buffer.get(n * stride_of(columns)), stride_of(columns)};
    }
    float* operator[](i64 row) const { return data + row * stride; }
};

// How many tokens of a row attend together, if each asks so many queries of a key head: together whole register tiles.
static inline i64 tokens_of_block(i64 queries) {
    for (i64 tokens = 40 / queries; tokens > 1; tokens--)
        if (tokens * queries % MOST_ROWS == 0) return tokens;
    return std::max<i64>(1, 24 / queries);
}

// A thread's own memory.
class Desks {
  public:
    Desks(Buffer& buffer, i64 threads, i64 queries, i64 key_dim, i64 value_dim, i64 keys, i64 segments)
        : stride_(stride_of(keys + LANES)), queries_(lines(queries * key_dim)), outs_(lines(queries * value_dim)),
          columns_(key_dim * PANEL), segments_(lines(segments * sizeof(Segment) / sizeof(float))),
          size_(queries_ + outs_ + columns_ + 2 * segments_ + queries * stride_), data_(buffer.get(threads * size_)) {}

    Desk of(i64 thread) const {
        float *query = data_ + thread * size_, *out = query + queries_, *columns = out + outs_;
        float *segments = columns + columns_, *later = segments + segments_;
        return {query, out, columns, later + segments_, reinterpret_cast<Segment*>(segments),
                reinterpret_cast<Segment*>(later), stride_};
    }

  private:
    static i64 lines(i64 floats) { return (floats + 15) / 16 * 16; }
    i64 stride_, queries_, outs_, columns_, segments_, size_;
    float* data_;
};

enum Wrong : i64 { NOTHING, ID, POSITION, ROW, PAGE, ORDER, WANTED };

// Whether a row's tokens stand apart, or at positions that do not follow each other.
static bool out_of_order(i64 rows, const Call& call) {
    thread_local std::vector<char> seen;
    seen.assign(rows, 0);
    for (i64 r = 0; r < call.n; r++) {
        char& known = seen[call.rows[r]];
        const bool goes_on = r && call.rows[r] == call.rows[r - 1];
        if (goes_on ? call.positions[r - 1] < 0 || call.positions[r] != call.positions[r - 1] + 1 : known) return true;
        known = 1;
    }
    return false;
}

// Nothing is written if something would be written or read outside of its memory.
static i64 mistake(const Sizes& s, const Cache* cache, i64 rows, const Call& call) {
    for (i64 i = 0; i < call.n; i++) {
        const i64 position = call.positions[i];
        if (call.ids[i] < 0 || call.ids[i] >= s.vocab) return ID;
        if (position < -1 || (s.turns && position + s.meta >= s.turns)) return POSITION;
        if (call.rows[i] < 0 || call.rows[i] >= rows) return ROW;
        if (cache && position >= cache->length) return POSITION;
    }
    if (out_of_order(rows, call)) return ORDER;
    for (i64 i = 0; call.wanted && i < call.outputs; i++)
        if (call.wanted[i] < 0 || call.wanted[i] >= call.n) return WANTED;
    for (i64 i = 0; cache && cache->table && i < call.n; i++) {
        if (i + 1 < call.n && call.rows[i + 1] == call.rows[i]) continue;
        for (i64 p = 0; p <= call.positions[i]; p += cache->page) {
            const i64 block = cache->block_of(call.rows[i], p);
            if (block < 0 || block >= cache->blocks) return PAGE;
        }
    }
    return NOTHING;
}

static void embed(Team& team, const Sizes& s, const Outer& outer, const Call& call, Rows x) {
    team.each(call.n, [&](i64 r) {
        std::memcpy(x[r], outer.embedding + call.ids[r] * s.hidden, sizeof(float) * s.hidden);
    });
}

// The rows of x whose logits are wanted, in `picked` unless these are all.
static Rows wanted_rows(Team& team, const Sizes& s, const Call& call, Rows x, Rows picked) {
    if (!call.wanted) return x;
    team.each(call.outputs, [&](i64 r) { std::memcpy(picked[r], x[call.wanted[r] - call.start], sizeof(float) * s.hidden); });
    return picked;
}

static void give_logits(Team& team, const Sizes& s, const Outer& outer, const Call& call, Rows x, const float* scales) {
    gemm(team, x.data, x.stride, call.outputs, s.hidden, outer.lm_head, s.vocab, true,
         PutExactly{call.logits, call.logits_stride, s.vocab, scales});
}

// The state's own key goes where its position says, and its value.
static inline void keep_token(const Cache& cache, i64 layer, i64 head, i64 row, i64 position, const float* key,
                              i64 key_dim, const float* value, i64 value_dim) {
    const i64 block = cache.block_of(row, position), at = position % cache.page;
    if (key) std::memcpy(cache.key(layer, head, block) + at * key_dim, key, sizeof(float) * key_dim);
    if (value) std::memcpy(cache.value(layer, head, block) + at * value_dim, value, sizeof(float) * value_dim);
}
