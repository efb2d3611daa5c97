// What every architecture's step is made of: the call, its checks, its memory.
#pragma once

#include <new>

#include "attention.h"
#include "gemm.h"

// One token for each of n rows. Python's `library.Call` is the same structure.
struct Call {
    i64 n, threads;
    const i64 *ids, *positions, *rows;
    float* logits;
    i64 logits_stride;
};

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

// A thread's own memory.
class Desks {
  public:
    Desks(Buffer& buffer, i64 threads, i64 queries, i64 key_dim, i64 keys, i64 segments)
        : stride_((keys + 3 * LANES) / LANES * LANES), queries_(queries), query_((queries * key_dim + 15) / 16 * 16),
          segments_((segments * sizeof(Segment) / sizeof(float) + 15) / 16 * 16), buffer_(buffer) {
        data_ = buffer.get(threads * size());
    }
    Desk of(i64 thread) const {
        float* own = data_ + thread * size();
        return {own, own + query_ + segments_, reinterpret_cast<Segment*>(own + query_), stride_};
    }

  private:
    i64 size() const { return query_ + segments_ + queries_ * stride_; }
    i64 stride_, queries_, query_, segments_;
    Buffer& buffer_;
    float* data_;
};

enum Wrong : i64 { NOTHING, ID, POSITION, ROW, PAGE };

// Nothing is written if something would be written or read outside of its memory.
static i64 mistake(const Sizes& s, const Cache* cache, i64 rows, const Call& call) {
    for (i64 i = 0; i < call.n; i++) {
        const i64 position = call.positions[i];
        if (call.ids[i] < 0 || call.ids[i] >= s.vocab) return ID;
        if (position < -1 || (s.turns && position + s.meta >= s.turns)) return POSITION;
        if (call.rows[i] < 0 || call.rows[i] >= rows) return ROW;
        if (!cache) continue;
        if (position >= cache->length) return POSITION;
        for (i64 p = 0; cache->table && p <= position; p += cache->page) {
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

static void give_logits(Team& team, const Sizes& s, const Outer& outer, const Call& call, Rows x, const float* scales) {
    gemm(team, x.data, x.stride, call.n, s.hidden, outer.lm_head, s.vocab, true,
         PutExactly{call.logits, call.logits_stride, s.vocab, scales});
}

// The state's own key goes where its position says, and its value.
static inline void keep_token(const Cache& cache, i64 layer, i64 head, i64 row, i64 position, const float* key,
                              i64 key_dim, const float* value, i64 value_dim) {
    const i64 block = cache.block_of(row, position), at = position % cache.page;
    if (key) std::memcpy(cache.key(layer, head, block) + at * key_dim, key, sizeof(float) * key_dim);
    if (value) std::memcpy(cache.value(layer, head, block) + at * value_dim, value, sizeof(float) * value_dim);
}
