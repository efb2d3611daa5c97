"""The programs of `triton`; formulas in `reference`.

1. A program is one warp. It holds some channels with all their N states in registers and walks over a span of tokens in
   groups of four (backwards: two), of which the next one's inputs are on their way while a group is worked on: a token
   takes fewer cycles than memory does to answer. A group within a document takes a path without cases. Forwards as few
   threads share a channel as fill a warp (`triton_tiles`), so nothing is exchanged but, at most, a sum over states;
   backwards four do, as sums over channels are as many as those over states.
2. Where rows and channels alone do not fill the device, time is cut into spans that run side by side: `ends` finds what
   each span makes of a zero state and how much of any state it leaves, `combine` puts these together span after span,
   and only then the outputs (backwards: the gradients) are made from the right states at the edges.
3. Kept for the backward is a state every `chunk` tokens. It makes those in between again, chunk by chunk: every second
   into a scratch, the others in registers. So memory is N / chunk values a token and channel, and a chunk's scratch a
   program. An exponential is taken twice a token and state, as forwards and backwards each need it in order. dD is
   summed on the way forwards, which brings the gradients of outputs near before the way back waits for them.
4. What is a sum over channels (dB, dC) or over tokens (dA, dD, dbias, the gradient of `initial`) is written in parts by
   the program that owns them and added up in a fixed order: equal inputs give equal bits, which atomics would not.
5. Padding counts as zeros, whatever is there: its step size of zero neither decays nor adds, its output is zero, and so
   are its gradients.
6. What stands around the scan in a mixer can be done by it: `softplus` of a stored step size with a bias, and `gated`,
   the product of the output with silu(z).
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from nlrl.kernels.selective_scan.triton_tiles import in_few_threads

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def place(channels, states: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr):
    """The program's row, channels and states, and where they lie in a tensor `(channels, N)`."""
    blocks = tl.cdiv(channels, block_d)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    c = tl.program_id(0) % blocks * block_d + tl.arange(0, block_d)
    n = tl.arange(0, block_n)
    return row, c, n, c[:, None] * states + n[None, :], (c < channels)[:, None] & (n < states)[None, :]


@triton.jit
def only_if(wanted, channels, c, inside):
    """The mask `inside`, or nothing. A scalar and a block are not joined by `&`: the interpreter gets that wrong."""
    return inside & (c < tl.where(wanted, channels, 0))[:, None]


@triton.jit
def read(pointer, token, size, i):
    """Values i of the `size` that a token has, as they are stored."""
    return tl.load(pointer + token * size + i, mask=i < size, other=0.0)


@triton.jit
def _place_of(position_ptr, token, wanted):
    """A token's position; beyond the span it counts as padding."""
    return tl.load(position_ptr + token, mask=wanted, other=-1)


@triton.jit
def inputs_of(
    x_ptr, delta_ptr, B_ptr, C_ptr, z_ptr, position_ptr, start, t, end, channels, z_row, c, n, states: tl.constexpr,
):  # fmt: skip
    """What a token brings, long before it is used. start: of the row; a token out of the row is not read."""
    token = start + tl.maximum(tl.minimum(t, end - 1), 0)
    position = _place_of(position_ptr, start + t, (t >= 0) & (t < end))
    return (
        position, read(x_ptr, token, channels, c), read(delta_ptr, token, channels, c),
        read(B_ptr, token, states, n), read(C_ptr, token, states, n),
        tl.load(z_ptr + token * z_row + c, mask=c < channels, other=0.0),
    )  # fmt: skip


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(x * -LOG2_E))


@triton.jit
def softplus_of(x):
    """log(1 + e**x); by its series where e**x is small, as 1 + e**x has lost it there."""
    e = tl.exp2(tl.minimum(x, 20.0) * LOG2_E)
    series = 1.0 - e * (1 / 2 - e * (1 / 3 - e * (1 / 4 - e * (1 / 5 - e * (1 / 6)))))
    return tl.where(x > 20.0, x, tl.where(e < 0.1, e * series, tl.log2(1.0 + e) * LN_2))


@triton.jit
def step_size(delta, bias, softplus: tl.constexpr):
    """The step size, in float32, from what is stored: itself, or what softplus makes it of."""
    delta = delta.to(tl.float32)
    if softplus:
        delta = softplus_of(delta + bias)
    return delta


@triton.jit
def if_real(value, position, plain: tl.constexpr):
    """The value of a token in float32, zeros of padding. plain: there is no padding."""
    value = value.to(tl.float32)
    if not plain:
        value = tl.where(position >= 0, value, 0.0)
    return value


@triton.jit
def met_by(
    h, position, initial_ptr, channels, c, at, inside, has_initial: tl.constexpr, plain: tl.constexpr,
    states: tl.constexpr = 0, threads: tl.constexpr = 0,
):  # fmt: skip
    """The state that a token meets: another one than was left where its document begins, which a plain one does not.
    threads: that share a channel of h, if it was loaded by `in_few_threads`."""
    if not plain:
        if has_initial and threads > 0:
            here = tl.where(position == 0, channels, 0)
            first = in_few_threads(initial_ptr, c, here, states, h.shape[0], h.shape[1], threads)
            h = tl.where(position == 0, first, h)
        elif has_initial:
            h = tl.load(initial_ptr + at, mask=only_if(position == 0, channels, c, inside), other=h)
        else:
            h = tl.where(position == 0, 0.0, h)
    return h


@triton.jit
def advance(
    h, A, bias, position, x, delta, B, initial_ptr, channels, c, at, inside, has_initial: tl.constexpr,
    softplus: tl.constexpr, plain: tl.constexpr, states: tl.constexpr = 0, threads: tl.constexpr = 0,
):  # fmt: skip
    """The state after a token from that before it, and its step size."""
    step = if_real(step_size(delta, bias, softplus), position, plain)
    push = step * if_real(x, position, plain)
    h = met_by(h, position, initial_ptr, channels, c, at, inside, has_initial, plain, states, threads)
    return tl.exp2(step[:, None] * A) * h + push[:, None] * if_real(B, position, plain)[None, :], step


@triton.jit
def bias_of(bias_ptr, channels, c, softplus: tl.constexpr):
    bias = 0.0
    if softplus:
        bias = tl.load(bias_ptr + c, mask=c < channels, other=0.0)
    return bias


@triton.jit(do_not_specialize=["time", "span"])
def ends(
    x_ptr, delta_ptr, bias_ptr, A_ptr, B_ptr, position_ptr, initial_ptr, ends_ptr, sums_ptr, time, channels, span,
    states: tl.constexpr, has_initial: tl.constexpr, softplus: tl.constexpr, block_d: tl.constexpr,
    block_n: tl.constexpr,
):  # fmt: skip
    """What a span makes of a zero state, and the sum of its step sizes, or -1 where no state passes it."""
    row, c, n, at, inside = place(channels, states, block_d, block_n)
    part = row * tl.num_programs(1) + tl.program_id(1)
    A = tl.load(A_ptr + at, mask=inside, other=0.0) * LOG2_E
    bias = bias_of(bias_ptr, channels, c, softplus)
    first = tl.program_id(1) * span
    end = tl.minimum(first + span, time)
    start = row * time
    p0, x0, d0, B0, _C, _z = inputs_of(
        x_ptr, delta_ptr, B_ptr, B_ptr, x_ptr, position_ptr, start, first, end, channels, channels, c, n, states
    )
    p1, x1, d1, B1, _C, _z = inputs_of(
        x_ptr, delta_ptr, B_ptr, B_ptr, x_ptr, position_ptr, start, first + 1, end, channels, channels, c, n, states
    )
    h = tl.zeros((block_d, block_n), tl.float32)
    total = tl.zeros((block_d,), tl.float32)
    for t in range(first, end, 2):
        q0, u0, e0, G0, _C, _z = inputs_of(
            x_ptr, delta_ptr, B_ptr, B_ptr, x_ptr, position_ptr, start, t + 2, end, channels, channels, c, n, states
        )
        q1, u1, e1, G1, _C, _z = inputs_of(
            x_ptr, delta_ptr, B_ptr, B_ptr, x_ptr, position_ptr, start, t + 3, end, channels, channels, c, n, states
        )
        h, step = advance(
            h, A, bias, p0, x0, d0, B0, initial_ptr, channels, c, at, inside, has_initial, softplus, False
        )
        total = tl.where((p0 == 0) | (total < 0.0), -1.0, total + step)
        h, step = advance(
            h, A, bias, p1, x1, d1, B1, initial_ptr, channels, c, at, inside, has_initial, softplus, False
        )
        total = tl.where((p1 == 0) | (total < 0.0), -1.0, total + step)
        p0, x0, d0, B0, p1, x1, d1, B1 = q0, u0, e0, G0, q1, u1, e1, G1
    tl.store(ends_ptr + part * channels * states + at, h, mask=inside)
    tl.store(sums_ptr + part * channels + c, total, mask=c < channels)


@triton.jit(do_not_specialize=["spans"])
def combine(
    A_ptr, first_ptr, ends_ptr, sums_ptr, channels, spans,
    states: tl.constexpr, backwards: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """Turns what spans make of zero into what they meet, in place."""
    row, c, _, at, inside = place(channels, states, block_d, block_n)
    A = tl.load(A_ptr + at, mask=inside, other=0.0) * LOG2_E
    carry = tl.load(first_ptr + row * channels * states + at, mask=inside, other=0.0)
    for i in range(0, spans):
        part = row * spans + i
        if backwards:
            part = row * spans + spans - 1 - i
        total = tl.load(sums_ptr + part * channels + c, mask=c < channels, other=0.0)[:, None]
        own = tl.load(ends_ptr + part * channels * states + at, mask=inside, other=0.0)
        tl.store(ends_ptr + part * channels * states + at, carry, mask=inside)
        carry = tl.where(total < 0.0, 0.0, tl.exp2(total * A) * carry) + own


@triton.jit
def _output(
    h, A, D, bias, position, x, delta, B, C, z, initial_ptr, y_ptr, token, wanted, channels, c, at, inside,
    states: tl.constexpr, has_initial: tl.constexpr, softplus: tl.constexpr, gated: tl.constexpr,
    threads: tl.constexpr, plain: tl.constexpr,
):  # fmt: skip
    """The state after a token, whose output is written."""
    h, _step = advance(
        h, A, bias, position, x, delta, B, initial_ptr, channels, c, at, inside, has_initial, softplus, plain, states,
        threads,
    )  # fmt: skip
    y = tl.sum(h * C.to(tl.float32)[None, :], 1) + D * x.to(tl.float32)
    if gated:
        z = z.to(tl.float32)
        y *= z * sigmoid(z)
    if plain:
        tl.store(y_ptr + token * channels + c, y.to(y_ptr.dtype.element_ty), mask=c < channels)
    else:
        y = tl.where(position >= 0, y, 0.0)
        tl.store(y_ptr + token * channels + c, y.to(y_ptr.dtype.element_ty), mask=c < tl.where(wanted, channels, 0))
    return h


@triton.jit(do_not_specialize=["time", "span"])
def forward(
    x_ptr, delta_ptr, bias_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, position_ptr, initial_ptr, before_ptr, y_ptr,
    kept_ptr, after_ptr, time, channels, z_row, span, states: tl.constexpr, has_initial: tl.constexpr,
    keeps: tl.constexpr, softplus: tl.constexpr, gated: tl.constexpr, chunk: tl.constexpr, block_d: tl.constexpr,
    block_n: tl.constexpr, threads: tl.constexpr,
):  # fmt: skip
    """before: the states that spans meet; kept: those that chunks meet; after: that behind the last token."""
    row, c, n, at, inside = place(channels, states, block_d, block_n)
    A = in_few_threads(A_ptr, c, channels, states, block_d, block_n, threads) * LOG2_E
    D = tl.load(D_ptr + c, mask=c < channels, other=0.0)
    bias = bias_of(bias_ptr, channels, c, softplus)
    size = channels * states
    first = tl.program_id(1) * span
    end = tl.minimum(first + span, time)
    start = row * time
    p0, x0, d0, B0, C0, z0 = inputs_of(
        x_ptr, delta_ptr, B_ptr, C_ptr, z_ptr, position_ptr, start, first, end, channels, z_row, c, n, states,
    )  # fmt: skip
    p1, x1, d1, B1, C1, z1 = inputs_of(
        x_ptr, delta_ptr, B_ptr, C_ptr, z_ptr, position_ptr, start, first + 1, end, channels, z_row, c, n, states,
    )  # fmt: skip
    p2, x2, d2, B2, C2, z2 = inputs_of(
        x_ptr, delta_ptr, B_ptr, C_ptr, z_ptr, position_ptr, start, first + 2, end, channels, z_row, c, n, states,
    )  # fmt: skip
    p3, x3, d3, B3, C3, z3 = inputs_of(
        x_ptr, delta_ptr, B_ptr, C_ptr, z_ptr, position_ptr, start, first + 3, end, channels, z_row, c, n, states,
    )  # fmt: skip
    before_ptr += (row * tl.num_programs(1) + tl.program_id(1)) * size
    h = in_few_threads(before_ptr, c, channels, states, block_d, block_n, threads)
    for t in range(first, end, 4):
        q0, u0, e0, F0, G0, w0 = inputs_of(
            x_ptr, delta_ptr, B_ptr, C_ptr, z_ptr, position_ptr, start, t + 4, end, channels, z_row, c, n, states,
        )  # fmt: skip
        q1, u1, e1, F1, G1, w1 = inputs_of(
            x_ptr, delta_ptr, B_ptr, C_ptr, z_ptr, position_ptr, start, t + 5, end, channels, z_row, c, n, states,
        )  # fmt: skip
        q2, u2, e2, F2, G2, w2 = inputs_of(
            x_ptr, delta_ptr, B_ptr, C_ptr, z_ptr, position_ptr, start, t + 6, end, channels, z_row, c, n, states,
        )  # fmt: skip
        q3, u3, e3, F3, G3, w3 = inputs_of(
            x_ptr, delta_ptr, B_ptr, C_ptr, z_ptr, position_ptr, start, t + 7, end, channels, z_row, c, n, states,
        )  # fmt: skip
        if keeps:  # noqa: SIM102, what is known before the program runs stands alone
            if t % chunk == 0:
                tl.store(kept_ptr + (row * tl.cdiv(time, chunk) + t // chunk) * size + at, h, mask=inside)
        if tl.minimum(tl.minimum(p0, p1), tl.minimum(p2, p3)) > 0:
            h = _output(
                h, A, D, bias, p0, x0, d0, B0, C0, z0, initial_ptr, y_ptr, start + t + 0, t + 0 < end, channels, c,
                at, inside, states, has_initial, softplus, gated, threads, True,
            )  # fmt: skip
            h = _output(
                h, A, D, bias, p1, x1, d1, B1, C1, z1, initial_ptr, y_ptr, start + t + 1, t + 1 < end, channels, c,
                at, inside, states, has_initial, softplus, gated, threads, True,
            )  # fmt: skip
            h = _output(
                h, A, D, bias, p2, x2, d2, B2, C2, z2, initial_ptr, y_ptr, start + t + 2, t + 2 < end, channels, c,
                at, inside, states, has_initial, softplus, gated, threads, True,
            )  # fmt: skip
            h = _output(
                h, A, D, bias, p3, x3, d3, B3, C3, z3, initial_ptr, y_ptr, start + t + 3, t + 3 < end, channels, c,
                at, inside, states, has_initial, softplus, gated, threads, True,
            )  # fmt: skip
        else:
            h = _output(
                h, A, D, bias, p0, x0, d0, B0, C0, z0, initial_ptr, y_ptr, start + t + 0, t + 0 < end, channels, c,
                at, inside, states, has_initial, softplus, gated, threads, False,
            )  # fmt: skip
            h = _output(
                h, A, D, bias, p1, x1, d1, B1, C1, z1, initial_ptr, y_ptr, start + t + 1, t + 1 < end, channels, c,
                at, inside, states, has_initial, softplus, gated, threads, False,
            )  # fmt: skip
            h = _output(
                h, A, D, bias, p2, x2, d2, B2, C2, z2, initial_ptr, y_ptr, start + t + 2, t + 2 < end, channels, c,
                at, inside, states, has_initial, softplus, gated, threads, False,
            )  # fmt: skip
            h = _output(
                h, A, D, bias, p3, x3, d3, B3, C3, z3, initial_ptr, y_ptr, start + t + 3, t + 3 < end, channels, c,
                at, inside, states, has_initial, softplus, gated, threads, False,
            )  # fmt: skip
        p0, x0, d0, B0, C0, z0 = q0, u0, e0, F0, G0, w0
        p1, x1, d1, B1, C1, z1 = q1, u1, e1, F1, G1, w1
        p2, x2, d2, B2, C2, z2 = q2, u2, e2, F2, G2, w2
        p3, x3, d3, B3, C3, z3 = q3, u3, e3, F3, G3, w3
    tl.store(after_ptr + row * size + at, h, mask=only_if(end == time, channels, c, inside))
