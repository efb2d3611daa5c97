// A call cut into parts that need nothing of each other: rows meet in no product, so a thread can take some of them
// through the whole model, and threads wait for each other once a call instead of once a product.
#pragma once

#include "step.h"

// Tokens that are read at once by one thread, and by all: activations stay in their caches.
constexpr i64 TOKENS_ALONE = 128, TOKENS_TOGETHER = 256;
// Tokens of a share, about: each share reads all weights. At least; of one step or pieces of prompts; of a burst, in
// which a share's keys and values should stay in the caches from step to step.
constexpr i64 LEAST_SHARED = 2, SHARED = 32, SHARED_IN_BURST = 8;

// Its tokens begin .. end - 1.
static Call part_of(const Call& call, i64 begin, i64 end, i64 threads) {
    Call part = call;
    part.n = end - begin, part.threads = threads, part.start = call.start + begin;
    part.ids += begin, part.positions += begin, part.rows += begin;
    i64 first = begin, last = end;
    if (call.wanted || !call.outputs) {
        const i64* stop = call.wanted + call.outputs;
        first = std::lower_bound(call.wanted, stop, part.start) - call.wanted;
        last = std::lower_bound(call.wanted, stop, part.start + part.n) - call.wanted;
        part.wanted += first;
    }
    part.outputs = last - first, part.logits += first * call.logits_stride;
    return part;
}

// Puts rows of these sizes together to shares, for threads that take one after the other. False where some thread would
// have much more to do than others, or each too little.
template <class SizeOf>
static bool share_out(i64 n, i64 threads, i64 most, SizeOf size_of, std::vector<Span>& shares) {
    const i64 even = (n + threads - 1) / threads, rounds = (even + most - 1) / most, size = (even + rounds - 1) / rounds;
    shares.clear();
    if (even < LEAST_SHARED) return false;
    for (i64 begin = 0, row; begin < n; begin += row) {
        row = size_of(begin);
        if (shares.empty() || shares.back().size() + row > size) shares.push_back({begin, begin, begin});
        shares.back().end += row;
    }
    std::vector<i64> tasks(threads);
    for (const Span& share : shares) *std::min_element(tasks.begin(), tasks.end()) += share.size();
    return 4 * *std::max_element(tasks.begin(), tasks.end()) <= 5 * even;
}

// share(span) for every share, each on one thread.
template <class Share>
static void on_threads(const std::vector<Span>& shares, i64 threads, Share share) {
    thread_local Phases phases;
    together(phases, 1, threads, [&](Team& team) {
        team.each(shares.size(), [&](i64 i) { share(shares[i]); }, shares.size());
    });
}

template <class Read>
static void in_pieces(const Call& call, Span span, i64 threads, i64 most, Read read) {
    for (i64 begin = span.begin; begin < span.end; begin += most)
        read(part_of(call, begin, std::min(span.end, begin + most), threads));
}

// read(part) for parts that make up the call; a row's tokens in their order. A part's logits lie in one piece, so tokens
// that are wanted out of order keep the call whole.
template <class Read>
static void in_parts(const Call& call, Read read) {
    thread_local std::vector<Span> shares;
    if (call.wanted && !std::is_sorted(call.wanted, call.wanted + call.outputs)) return read(call);
    auto tokens = [&](i64 begin) {
        i64 end = begin + 1;
        while (end < call.n && call.rows[end] == call.rows[begin]) end++;
        return end - begin;
    };
    if (share_out(call.n, call.threads, SHARED, tokens, shares))
        on_threads(shares, call.threads, [&](Span share) { in_pieces(call, share, 1, TOKENS_ALONE, read); });
    else
        in_pieces(call, {0, call.n, 0}, call.threads, call.threads < 2 ? TOKENS_ALONE : TOKENS_TOGETHER, read);
}
