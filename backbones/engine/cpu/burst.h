// Decoding steps one after the other: each reads a token a row and draws the next, and who is finished leaves.
#pragma once

#include "parts.h"
#include "sampler.h"

using Step = i64 (*)(const void* const* parts, const Call* call);

// The rows that draw (`rows`, n of them), and columns of all rows as `rows.py` has them; tokens and logprobs have a
// place for every step. logits: `(n, vocab)`, for our own use. Python's `library.Burst` is the same structure.
struct Burst {
    i64 n, steps, threads, vocab, ends_count, places;
    const i64 *rows, *ends;
    float* logits;
    i64 *ids, *positions, *drawn;
    const i64 *seeds, *limit;
    const float* temperature;
    bool* finished;
    const bool* ignores_end;
    i64* tokens;
    float* logprobs;
};

// What a step is given, row by row.
struct Given {
    std::vector<i64> rows, ids, positions, seeds, drawn, tokens;
    std::vector<float> temperature, logprobs;

    void gather(const Burst& b) {
        rows.erase(std::remove_if(rows.begin(), rows.end(), [&](i64 r) { return b.finished[r]; }), rows.end());
        for (auto* column : {&ids, &positions, &seeds, &drawn, &tokens}) column->resize(rows.size());
        for (auto* column : {&temperature, &logprobs}) column->resize(rows.size());
        for (std::size_t i = 0; i < rows.size(); i++) {
            const i64 r = rows[i];
            ids[i] = b.ids[r], positions[i] = b.positions[r], seeds[i] = b.seeds[r], drawn[i] = b.drawn[r];
            temperature[i] = b.temperature[r];
        }
    }
};

static void note(const Burst& b, i64 row, i64 place, i64 token, float logprob) {
    const bool ended = std::find(b.ends, b.ends + b.ends_count, token) != b.ends + b.ends_count;
    b.ids[row] = b.tokens[row * b.places + place] = token;
    b.logprobs[row * b.places + place] = logprob;
    b.positions[row]++;
    b.finished[row] = ++b.drawn[row] >= b.limit[row] || (ended && !b.ignores_end[row]);
}

// Rows begin .. end - 1 of those that draw.
static i64 burst_of(Step step, const void* const* parts, const Burst& b, Span span, i64 threads) {
    thread_local Given given;
    float* logits = b.logits + span.begin * b.vocab;
    given.rows.assign(b.rows + span.begin, b.rows + span.end);
    for (i64 place = 0; place < b.steps; place++) {
        given.gather(b);
        const i64 n = given.rows.size();
        if (!n) break;
        const Call call{n, threads, n, given.ids.data(), given.positions.data(), given.rows.data(), nullptr, logits,
                        b.vocab, 0};
        if (const i64 wrong = step(parts, &call)) return wrong;
        sample({n, b.vocab, threads, logits, b.vocab, given.seeds.data(), given.drawn.data(),
                given.temperature.data(), given.tokens.data(), given.logprobs.data()});
        for (i64 i = 0; i < n; i++) note(b, given.rows[i], place, given.tokens[i], given.logprobs[i]);
    }
    return NOTHING;
}

static i64 burst(Step step, const void* const* parts, const Burst& b) {
    thread_local std::vector<Span> shares;
    thread_local std::vector<i64> sorted;
    sorted.assign(b.rows, b.rows + b.n);
    std::sort(sorted.begin(), sorted.end());
    if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) return ORDER;
    if (!share_out(b.n, b.threads, SHARED_IN_BURST, [](i64) { return 1; }, shares))
        return burst_of(step, parts, b, {0, b.n, 0}, b.threads);
    std::atomic<i64> wrong{NOTHING};
    on_threads(shares, b.threads, [&](Span share) {
        if (const i64 found = burst_of(step, parts, b, share, 1)) wrong = found;
    });
    return wrong;
}
