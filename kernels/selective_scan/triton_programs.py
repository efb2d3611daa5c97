"""The programs of `triton`; formulas in `reference`.

1. A program is one warp. It holds some channels with all their N states in registers and walks over a span of tokens,
   whose next inputs are on their way while a token is worked on.
2. Where rows and channels alone do not fill the device, time is cut into spans that run side by side: `ends` finds what
   each span makes of a zero state and how much of any state it leaves, `combine` puts these together span after span,
   and only then the outputs (backwards: the gradients) are made from the right states at the edges.
3. Kept for the backward is a state every `chunk` tokens. It makes those in between again, chunk by chunk: every second
   into a scratch, the others in registers. So memory is N / chunk values a token and channel, and a chunk's scratch a
   program.
4. What is a sum over channels (dB, dC) or over tokens (dA, dD, the gradient of `initial`) is written in parts by the
   program that owns them and added up in a fixed order: equal inputs give equal bits, which atomics would not.
5. Padding reads as zeros, whatever is there: its step size of zero neither decays nor adds, its output is zero, and so
   are its gradients.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _place(channels, states: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr):
    """The program's row, channels and states, and where they lie in a tensor `(channels, N)`."""
    blocks = tl.cdiv(channels, block_d)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    c = tl.program_id(0) % blocks * block_d + tl.arange(0, block_d)
    n = tl.arange(0, block_n)
    return row, c, n, c[:, None] * states + n[None, :], (c < channels)[:, None] & (n < states)[None, :]


@triton.jit
def _only_if(wanted, channels, c, inside):
    """The mask `inside`, or nothing. A scalar and a block are not joined by `&`: the interpreter gets that wrong."""
    return inside & (c < tl.where(wanted, channels, 0))[:, None]


@triton.jit
def _read(pointer, token, size, i, wanted):
    """Values i of the `size` that a token has, in float32; zeros if they are not wanted."""
    return tl.load(pointer + token * size + i, mask=i < tl.where(wanted, size, 0), other=0.0).to(tl.float32)


@triton.jit
def _met(h, position, initial_ptr, channels, c, at, inside, has_initial: tl.constexpr):
    """The state that a token meets: another one than was left where its document begins."""
    if has_initial:
        h = tl.load(initial_ptr + at, mask=_only_if(position == 0, channels, c, inside), other=h)
    else:
        h = tl.where(position == 0, 0.0, h)
    return h


@triton.jit
def _advance(
    h, A, x_ptr, delta_ptr, B_ptr, position_ptr, initial_ptr, token, wanted, channels, c, n, at, inside,
    states: tl.constexpr, has_initial: tl.constexpr,
):  # fmt: skip
    """The state after a token from that before it."""
    position = tl.load(position_ptr + token, mask=wanted, other=-1)
    real = position >= 0
    x = _read(x_ptr, token, channels, c, real)
    delta = _read(delta_ptr, token, channels, c, real)
    B = _read(B_ptr, token, states, n, real)
    h = _met(h, position, initial_ptr, channels, c, at, inside, has_initial)
    return tl.exp2(delta[:, None] * A) * h + (delta * x)[:, None] * B[None, :]


@triton.jit(do_not_specialize=["time", "span"])
def ends(
    x_ptr, delta_ptr, A_ptr, B_ptr, position_ptr, initial_ptr, ends_ptr, sums_ptr, time, channels, span,
    states: tl.constexpr, has_initial: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """What a span makes of a zero state, and the sum of its step sizes, or -1 where no state passes it."""
    row, c, n, at, inside = _place(channels, states, block_d, block_n)
    part = row * tl.num_programs(1) + tl.program_id(1)
    A = tl.load(A_ptr + at, mask=inside, other=0.0) * LOG2_E
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, time)
    token = row * time + start
    position = tl.load(position_ptr + token)
    x = _read(x_ptr, token, channels, c, True)
    delta = _read(delta_ptr, token, channels, c, True)
    B = _read(B_ptr, token, states, n, True)
    h = tl.zeros((block_d, block_n), tl.float32)
    total = tl.zeros((block_d,), tl.float32)
    for t in range(start, end):
        later = row * time + t + 1
        more = t + 1 < end
        next_position = tl.load(position_ptr + later, mask=more, other=-1)
        next_x = _read(x_ptr, later, channels, c, more)
        next_delta = _read(delta_ptr, later, channels, c, more)
        next_B = _read(B_ptr, later, states, n, more)
        step = tl.where(position >= 0, delta, 0.0)
        push = tl.where(position >= 0, delta * x, 0.0)
        h = _met(h, position, initial_ptr, channels, c, at, inside, has_initial)
        h = tl.exp2(step[:, None] * A) * h + push[:, None] * tl.where(position >= 0, B, 0.0)[None, :]
        total = tl.where((position == 0) | (total < 0.0), -1.0, total + step)
        position, x, delta, B = next_position, next_x, next_delta, next_B
    tl.store(ends_ptr + part * channels * states + at, h, mask=inside)
    tl.store(sums_ptr + part * channels + c, total, mask=c < channels)


@triton.jit(do_not_specialize=["time", "span"])
def ends_backwards(
    dy_ptr, delta_ptr, A_ptr, C_ptr, position_ptr, ends_ptr, time, channels, span,
    states: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """The gradient of the state before a span if that of the state after it is zero."""
    row, c, n, at, inside = _place(channels, states, block_d, block_n)
    part = row * tl.num_programs(1) + tl.program_id(1)
    A = tl.load(A_ptr + at, mask=inside, other=0.0) * LOG2_E
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, time)
    token = row * time + end - 1
    position = tl.load(position_ptr + token)
    dy = _read(dy_ptr, token, channels, c, True)
    delta = _read(delta_ptr, token, channels, c, True)
    C = _read(C_ptr, token, states, n, True)
    g = tl.zeros((block_d, block_n), tl.float32)
    for i in range(0, end - start):
        earlier = row * time + end - 2 - i
        more = i + 1 < end - start
        next_position = tl.load(position_ptr + earlier, mask=more, other=-1)
        next_dy = _read(dy_ptr, earlier, channels, c, more)
        next_delta = _read(delta_ptr, earlier, channels, c, more)
        next_C = _read(C_ptr, earlier, states, n, more)
        step = tl.where(position >= 0, delta, 0.0)
        g += tl.where(position >= 0, dy, 0.0)[:, None] * tl.where(position >= 0, C, 0.0)[None, :]
        g = tl.where(position == 0, 0.0, tl.exp2(step[:, None] * A) * g)
        position, dy, delta, C = next_position, next_dy, next_delta, next_C
    tl.store(ends_ptr + part * channels * states + at, g, mask=inside)


@triton.jit(do_not_specialize=["spans"])
def combine(
    A_ptr, first_ptr, ends_ptr, sums_ptr, channels, spans,
    states: tl.constexpr, backwards: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """Turns what spans make of zero into what they meet, in place."""
    row, c, _, at, inside = _place(channels, states, block_d, block_n)
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


@triton.jit(do_not_specialize=["time", "span"])
def forward(
    x_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, position_ptr, initial_ptr, before_ptr, y_ptr, kept_ptr, after_ptr,
    time, channels, span, states: tl.constexpr, has_initial: tl.constexpr, keeps: tl.constexpr, chunk: tl.constexpr,
    block_d: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """before: the states that spans meet; kept: those that chunks meet; after: that behind the last token."""
    row, c, n, at, inside = _place(channels, states, block_d, block_n)
    A = tl.load(A_ptr + at, mask=inside, other=0.0) * LOG2_E
    D = tl.load(D_ptr + c, mask=c < channels, other=0.0)
    size = channels * states
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, time)
    token = row * time + start
    position = tl.load(position_ptr + token)
    x = _read(x_ptr, token, channels, c, True)
    delta = _read(delta_ptr, token, channels, c, True)
    B = _read(B_ptr, token, states, n, True)
    C = _read(C_ptr, token, states, n, True)
    h = tl.load(before_ptr + (row * tl.num_programs(1) + tl.program_id(1)) * size + at, mask=inside, other=0.0)
    for t in range(start, end):
        later = row * time + t + 1
        more = t + 1 < end
        next_position = tl.load(position_ptr + later, mask=more, other=-1)
        next_x = _read(x_ptr, later, channels, c, more)
        next_delta = _read(delta_ptr, later, channels, c, more)
        next_B = _read(B_ptr, later, states, n, more)
        next_C = _read(C_ptr, later, states, n, more)
        if keeps:
            kept = kept_ptr + (row * tl.cdiv(time, chunk) + t // chunk) * size
            tl.store(kept + at, h, mask=_only_if(t % chunk == 0, channels, c, inside))
        step = tl.where(position >= 0, delta, 0.0)
        push = tl.where(position >= 0, delta * x, 0.0)
        h = _met(h, position, initial_ptr, channels, c, at, inside, has_initial)
        h = tl.exp2(step[:, None] * A) * h + push[:, None] * tl.where(position >= 0, B, 0.0)[None, :]
        y = tl.where(position >= 0, tl.sum(h * C[None, :], 1) + D * x, 0.0)
        tl.store(y_ptr + (row * time + t) * channels + c, y.to(y_ptr.dtype.element_ty), mask=c < channels)
        position, x, delta, B, C = next_position, next_x, next_delta, next_B, next_C
    tl.store(after_ptr + row * size + at, h, mask=_only_if(end == time, channels, c, inside))


@triton.jit
def _retreat(
    h, g, dA, dD, A, D, x_ptr, delta_ptr, B_ptr, C_ptr, dy_ptr, position_ptr, initial_ptr, dx_ptr, ddelta_ptr,
    dB_ptr, dC_ptr, dinitial_ptr, token, part_token, wanted, channels, c, n, at, inside,
    states: tl.constexpr, has_initial: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of a token's inputs. h: the state before the token; g: the gradient of that after it, of
    which that of the state before it is returned. A is in units of log2(e)."""
    position = tl.load(position_ptr + token, mask=wanted, other=-1)
    real = position >= 0
    x = _read(x_ptr, token, channels, c, real)
    delta = _read(delta_ptr, token, channels, c, real)
    dy = _read(dy_ptr, token, channels, c, real)
    B = _read(B_ptr, token, states, n, real)
    C = _read(C_ptr, token, states, n, real)
    full = tl.exp2(delta[:, None] * A)
    rest = full * _met(h, position, initial_ptr, channels, c, at, inside, has_initial)
    push = (delta * x)[:, None]
    dC = tl.sum(dy[:, None] * (rest + push * B[None, :]), 0)
    g += dy[:, None] * C[None, :]
    dB = tl.sum(g * push, 0)
    dpush = tl.sum(g * B[None, :], 1)
    dexponent = g * rest
    ddelta = tl.where(real, tl.sum(dexponent * A, 1) * LN_2 + dpush * x, 0.0)
    dx = dpush * delta + D * dy
    mask = c < tl.where(wanted, channels, 0)
    tl.store(dx_ptr + token * channels + c, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(ddelta_ptr + token * channels + c, ddelta.to(ddelta_ptr.dtype.element_ty), mask=mask)
    tl.store(dB_ptr + part_token * states + n, dB, mask=n < tl.where(wanted, states, 0))
    tl.store(dC_ptr + part_token * states + n, dC, mask=n < tl.where(wanted, states, 0))
    g *= full
    if has_initial:  # documents begin seldom: the sum is kept in memory, not in registers
        begins = _only_if(position == 0, channels, c, inside)
        sum_ = tl.load(dinitial_ptr + at, mask=begins, other=0.0)
        tl.store(dinitial_ptr + at, sum_ + g, mask=begins)
    return tl.where(position == 0, 0.0, g), dA + dexponent * delta[:, None], dD + dy * x


@triton.jit(do_not_specialize=["time", "span", "rows"])
def backward(
    x_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, position_ptr, initial_ptr, kept_ptr, dy_ptr, dafter_ptr, scratch_ptr,
    dx_ptr, ddelta_ptr, dB_ptr, dC_ptr, dA_ptr, dD_ptr, dinitial_ptr, dstate_ptr, rows, time, channels, span,
    states: tl.constexpr, has_initial: tl.constexpr, chunk: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """dafter: gradients of the states behind spans; dstate: of that before the first token."""
    row, c, n, at, inside = _place(channels, states, block_d, block_n)
    A = tl.load(A_ptr + at, mask=inside, other=0.0) * LOG2_E
    D = tl.load(D_ptr + c, mask=c < channels, other=0.0)
    size = channels * states
    part = row * tl.num_programs(1) + tl.program_id(1)
    held = tl.arange(0, block_d)[:, None] * block_n + n[None, :]
    program = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    scratch = scratch_ptr + program * (chunk // 2 * block_d * block_n)
    block = (tl.program_id(0) % tl.cdiv(channels, block_d)).to(tl.int64)
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, time)
    g = tl.load(dafter_ptr + part * size + at, mask=inside, other=0.0)
    dA = tl.zeros((block_d, block_n), tl.float32)
    dD = tl.zeros((block_d,), tl.float32)
    dinitial = dinitial_ptr + part * size
    chunks = tl.cdiv(end - start, chunk)
    for i in range(0, chunks):
        first = start + (chunks - 1 - i) * chunk
        h = tl.load(kept_ptr + (row * tl.cdiv(time, chunk) + first // chunk) * size + at, mask=inside, other=0.0)
        tl.debug_barrier()
        tl.store(scratch + held, h)
        for pair in range(1, chunk // 2):
            for k in tl.static_range(2):
                t = first + (pair - 1) * 2 + k
                h = _advance(
                    h, A, x_ptr, delta_ptr, B_ptr, position_ptr, initial_ptr, row * time + t, t < end, channels, c, n,
                    at, inside, states, has_initial,
                )  # fmt: skip
            tl.store(scratch + pair * (block_d * block_n) + held, h)
        tl.debug_barrier()
        for j in range(0, chunk // 2):
            pair = chunk // 2 - 1 - j
            t = first + pair * 2
            token, part_token = row * time + t, (block * rows + row) * time + t
            h = tl.load(scratch + pair * (block_d * block_n) + held)
            between = _advance(
                h, A, x_ptr, delta_ptr, B_ptr, position_ptr, initial_ptr, token, t < end, channels, c, n, at, inside,
                states, has_initial,
            )  # fmt: skip
            g, dA, dD = _retreat(
                between, g, dA, dD, A, D, x_ptr, delta_ptr, B_ptr, C_ptr, dy_ptr, position_ptr, initial_ptr, dx_ptr,
                ddelta_ptr, dB_ptr, dC_ptr, dinitial, token + 1, part_token + 1, t + 1 < end, channels, c, n, at,
                inside, states, has_initial,
            )  # fmt: skip
            g, dA, dD = _retreat(
                h, g, dA, dD, A, D, x_ptr, delta_ptr, B_ptr, C_ptr, dy_ptr, position_ptr, initial_ptr, dx_ptr,
                ddelta_ptr, dB_ptr, dC_ptr, dinitial, token, part_token, t < end, channels, c, n, at, inside, states,
                has_initial,
            )  # fmt: skip
    tl.store(dA_ptr + part * size + at, dA, mask=inside)
    tl.store(dD_ptr + part * channels + c, dD, mask=c < channels)
    tl.store(dstate_ptr + row * size + at, g, mask=_only_if(start == 0, channels, c, inside))
