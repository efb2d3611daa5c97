// Draws tokens by the Gumbel-max trick with noise that is a hash of (seed, step, token): `sampler.gumbel_noise`.
#pragma once

#include "team.h"

// Python's `library.Draw` is the same structure.
struct Draw {
    i64 n, vocab, threads;
    const float* logits;
    i64 stride;
    const i64 *seeds, *steps;
    const float* temperature;
    i64* tokens;
    float* logprobs;
};

typedef std::uint32_t U __attribute__((vector_size(4 * LANES)));

// Standard Gumbel noise of a row's tokens.
class Noise {
  public:
    Noise(i64 seed, i64 step) {
        std::uint64_t x = std::uint64_t(seed) + (std::uint64_t(step) + 1) * 0x9E3779B97F4A7C15u;
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
        x ^= x >> 31;
        high_ = std::uint32_t(x >> 32);
        low_ = std::uint32_t(x);
    }

    V of(U tokens) const {
        U x = (tokens * 0x9E3779B1u) ^ high_;
        x = (x ^ (x >> 16)) * 0x85EBCA6Bu + low_;
        x = (x ^ (x >> 16)) * 0x85EBCA6Bu;
        x = (x ^ (x >> 13)) * 0xC2B2AE35u;
        x = (x ^ (x >> 16)) & 0x7FFFFFu;
        V uniform = (__builtin_convertvector((I)x, V) + 0.5f) * 0x1p-23f;
        return -log(-log(uniform));
    }

  private:
    std::uint32_t high_, low_;
};

// The first of the largest scores.
static i64 winner(V best, U tokens) {
    int at = 0;
    for (int i = 1; i < LANES; i++)
        if (best[i] > best[at] || (best[i] == best[at] && tokens[i] < tokens[at])) at = i;
    return tokens[at];
}

static void draw_row(const Draw& draw, i64 row) {
    const float *logits = draw.logits + row * draw.stride, temperature = draw.temperature[row];
    const Noise noise(draw.seeds[row], draw.steps[row]);
    U tokens, chosen = {};
    for (int i = 0; i < LANES; i++) tokens[i] = i;
    V best = all(-INFINITY), most = best, total = {};
    for (i64 i = 0; i < draw.vocab; i += LANES, tokens += LANES) {
        V logit = draw.vocab - i < LANES ? load_some(logits + i, draw.vocab - i, -INFINITY) : load(logits + i);
        V score = temperature > 0 ? logit + noise.of(tokens) * temperature : logit;
        chosen = score > best ? tokens : chosen;
        best = maximum(best, score);
        most = maximum(most, logit);
    }
    const float top = largest(most);
    for (i64 i = 0; i < draw.vocab; i += LANES)
        total += exp((draw.vocab - i < LANES ? load_some(logits + i, draw.vocab - i, -INFINITY) : load(logits + i)) - top);
    draw.tokens[row] = winner(best, chosen);
    draw.logprobs[row] = logits[draw.tokens[row]] - (top + std::log(sum(total)));
}

// A thread that draws from fewer numbers costs more than it does.
constexpr i64 NUMBERS_A_THREAD = 1 << 14;

static void sample(const Draw& draw) {
    thread_local Phases phases;
    const i64 threads = std::min(draw.threads, 1 + draw.n * draw.vocab / NUMBERS_A_THREAD);
    together(phases, 1, threads, [&](Team& team) { team.each(draw.n, [&](i64 row) { draw_row(draw, row); }); });
}
