// Mamba-2 and Bi-Mamba: a layer is one mixer.
#pragma once

#include "recurrent.h"

// Norms' weights are in the matrices; A = -exp(A_log); null where a layer has no bias.
struct MixerLayer {
    const float *in_proj, *conv_weight, *conv_bias, *dt_bias, *A, *D, *out_proj;
};

struct BiMamba {
    const Sizes& s;
    const Outer& outer;
    const MixerLayer* layers;
    const Part windows, states;
    const Call& call;
    const Rows x, projected, mixed, y, picked;
    float* const scales;
    const std::vector<Span>& spans;  // rows

    void run(Team& team) const {
        embed(team, s, outer, call, x);
        for (i64 l = 0; l < s.layers; l++) layer(team, l);
        const Rows last = wanted_rows(team, s, call, x, picked);
        give_logits(team, s, outer, call, last, norms(team, last, call.outputs));
    }

    const float* norms(Team& team, Rows of, i64 n) const {
        return row_scales(team, scales, of.data, of.stride, n, s.hidden, s.eps);
    }

    void layer(Team& team, i64 l) const {
        const MixerLayer& w = layers[l];
        const i64 blocks = (s.conv + BLOCK - 1) / BLOCK;
        gemm(team, x.data, x.stride, call.n, s.hidden, w.in_proj, s.inner + s.conv + s.ssm_heads, true,
             Put{projected.data, projected.stride, norms(team, x, call.n)});
        team.each(spans.size() * blocks,
                  [&](i64 task) { convolution(l, spans[task / blocks], task % blocks * BLOCK); });
        team.each(spans.size() * s.ssm_heads, [&](i64 task) {
            const Span span = spans[task / s.ssm_heads];
            for (i64 r = span.begin; r < span.end; r++) head(l, r, task % s.ssm_heads);
        }, 16);
        team.each(call.n, [&](i64 r) {
            const i64 width = s.inner / s.norm_groups;
            for (i64 g = 0; g < s.norm_groups; g++)
                scale_row(y[r] + g * width, width, inverse_rms(y[r] + g * width, width, s.eps));
        });
        gemm(team, y.data, y.stride, call.n, s.inner, w.out_proj, s.hidden, true, Add{x.data, x.stride});
    }

    void convolution(i64 l, Span span, i64 begin) const {
        const Filter filter{layers[l].conv_weight, layers[l].conv_bias, nullptr, s.taps, s.conv};
        convolve(mixed, {projected.data + s.inner, projected.stride}, span, call.positions[span.begin], filter,
                 windows.at(l, call.rows[span.begin]), begin, std::min(s.conv, begin + BLOCK));
    }

    void head(i64 l, i64 r, i64 h) const {
        const MixerLayer& w = layers[l];
        const i64 position = call.positions[r], size = s.ssm_dim * s.states, group = h / (s.ssm_heads / s.groups);
        float *out = y[r] + h * s.ssm_dim, *S = states.at(l, call.rows[r]) + h * size;
        if (position < 0) {
            std::memset(out, 0, sizeof(float) * s.ssm_dim);
            return;
        }
        if (position == 0) std::memset(S, 0, sizeof(float) * size);
        const float dt = softplus(all(projected[r][s.inner + s.conv + h] + w.dt_bias[h]))[0];
        const float *own = mixed[r] + h * s.ssm_dim, *z = projected[r] + h * s.ssm_dim;
        const float *B = mixed[r] + s.inner + group * s.states, *C = B + s.groups * s.states;
        matrix_step(out, own, dt, std::exp(dt * w.A[h]), B, C, S, s.ssm_dim, s.states);
        for (i64 p = 0; p < s.ssm_dim; p += LANES)
            store_some(out + p, (load(out + p) + w.D[h] * load(own + p)) * silu(load(z + p)), s.ssm_dim - p);
    }

    static constexpr i64 BLOCK = 64;
};

static void bimamba_part(const Sizes& s, const Outer& outer, const MixerLayer* layers, const Part& windows,
                         const Part& states, const Call& call) {
    thread_local Phases phases;
    thread_local Buffer x, projected, mixed, y, picked, scales;
    thread_local std::vector<Span> spans;
    const BiMamba model{s, outer, layers, windows, states, call, Rows::in(x, call.n, s.hidden),
                        Rows::in(projected, call.n, s.inner + s.conv + s.ssm_heads), Rows::in(mixed, call.n, s.conv),
                        Rows::in(y, call.n, s.inner), Rows::in(picked, call.outputs, s.hidden),
                        scales.get(call.threads * call.n), cut(call, call.n, spans)};
    together(phases, 5 * s.layers + 3, call.threads, [&](Team& team) { model.run(team); });
}

static i64 bimamba_step(const Sizes& s, const Outer& outer, const MixerLayer* layers, const Part& windows,
                        const Part& states, i64 rows, const Call& call) {
    if (const i64 wrong = mistake(s, nullptr, rows, call)) return wrong;
    in_parts(call, [&](const Call& part) { bimamba_part(s, outer, layers, windows, states, part); });
    return NOTHING;
}
