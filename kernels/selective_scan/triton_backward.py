"""The programs of `triton` that go backwards; what they share with the others, and how they work, is in
`triton_programs`."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from nlrl.kernels.selective_scan.triton_programs import (
    LN_2,
    LOG2_E,
    advance,
    bias_of,
    if_real,
    inputs_of,
    met_by,
    only_if,
    place,
    read,
    sigmoid,
    step_size,
)


@triton.jit
def _gated_gradient(dy, z, position, gated: tl.constexpr, plain: tl.constexpr):
    """The gradient of the output before the gate."""
    dy = if_real(dy, position, plain)
    if gated:
        z = if_real(z, position, plain)
        dy *= z * sigmoid(z)
    return dy


@triton.jit(do_not_specialize=["time", "span"])
def ends(
    dy_ptr, delta_ptr, bias_ptr, A_ptr, C_ptr, z_ptr, position_ptr, ends_ptr, time, channels, z_row, span,
    states: tl.constexpr, softplus: tl.constexpr, gated: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """The gradient of the state before a span if that of the state after it is zero."""
    row, c, n, at, inside = place(channels, states, block_d, block_n)
    part = row * tl.num_programs(1) + tl.program_id(1)
    A = tl.load(A_ptr + at, mask=inside, other=0.0) * LOG2_E
    bias = bias_of(bias_ptr, channels, c, softplus)
    first = tl.program_id(1) * span
    end = tl.minimum(first + span, time)
    start = row * time
    position, dy, delta, C, _C, z = inputs_of(
        dy_ptr, delta_ptr, C_ptr, C_ptr, z_ptr, position_ptr, start, end - 1, end, channels, z_row, c, n, states
    )
    g = tl.zeros((block_d, block_n), tl.float32)
    for i in range(0, end - first):
        q, u, e, G, _C, w = inputs_of(
            dy_ptr, delta_ptr, C_ptr, C_ptr, z_ptr, position_ptr, start, end - 2 - i, end, channels, z_row, c, n, states
        )
        step = if_real(step_size(delta, bias, softplus), position, False)
        dy = _gated_gradient(dy, z, position, gated, False)
        g += dy[:, None] * if_real(C, position, False)[None, :]
        g = tl.where(position == 0, 0.0, tl.exp2(step[:, None] * A) * g)
        position, dy, delta, C, z = q, u, e, G, w
    tl.store(ends_ptr + part * channels * states + at, g, mask=inside)


@triton.jit
def _retreat(
    met, full, g, dA, dbias, A, D, bias, position, x, delta, B, C, z, dy, initial_ptr, dx_ptr, ddelta_ptr, dz_ptr,
    dB_ptr, dC_ptr, dinitial_ptr, token, part_token, wanted, channels, c, n, at, inside, states: tl.constexpr,
    has_initial: tl.constexpr, softplus: tl.constexpr, gated: tl.constexpr, plain: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of a token's inputs. met: the state that it met; full: exp(delta A); g: the gradient of the
    state after it, of which that of the state before it is returned. A is in units of log2(e)."""
    step = if_real(step_size(delta, bias, softplus), position, plain)
    x = if_real(x, position, plain)
    B, C = if_real(B, position, plain), if_real(C, position, plain)
    doutput = if_real(dy, position, plain)
    dy = _gated_gradient(dy, z, position, gated, plain)
    rest = full * met
    push = step * x
    h = rest + push[:, None] * B[None, :]
    if gated:
        z = if_real(z, position, plain)
        share = sigmoid(z)
        dz = doutput * (tl.sum(h * C[None, :], 1) + D * x) * share * (1.0 + z * (1.0 - share))
    dC = tl.sum(dy[:, None] * h, 0)
    g += dy[:, None] * C[None, :]
    dB = tl.sum(g * push[:, None], 0)
    dpush = tl.sum(g * B[None, :], 1)
    dexponent = g * rest
    ddelta = tl.sum(dexponent * A, 1) * LN_2 + dpush * x
    if softplus:
        ddelta *= sigmoid(delta.to(tl.float32) + bias)
    ddelta = if_real(ddelta, position, plain)
    dA += dexponent * step[:, None]
    dx = dpush * step + D * dy
    if softplus:
        dbias += ddelta
    mask, states_mask = c < channels, n < states
    if not plain:
        mask, states_mask = c < tl.where(wanted, channels, 0), n < tl.where(wanted, states, 0)
    tl.store(dx_ptr + token * channels + c, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(ddelta_ptr + token * channels + c, ddelta.to(ddelta_ptr.dtype.element_ty), mask=mask)
    if gated:
        tl.store(dz_ptr + token * channels + c, dz.to(dz_ptr.dtype.element_ty), mask=mask)
    tl.store(dB_ptr + part_token * states + n, dB, mask=states_mask)
    tl.store(dC_ptr + part_token * states + n, dC, mask=states_mask)
    g *= full
    if not plain:
        if has_initial:  # documents begin seldom: the sum is kept in memory, not in registers
            begins = only_if(position == 0, channels, c, inside)
            sum_ = tl.load(dinitial_ptr + at, mask=begins, other=0.0)
            tl.store(dinitial_ptr + at, sum_ + g, mask=begins)
        g = tl.where(position == 0, 0.0, g)
    return g, dA, dbias


@triton.jit
def _retreat_two(
    h, g, dA, dbias, A, D, bias, p0, x0, d0, B0, C0, z0, dy0, p1, x1, d1, B1, C1, z1, dy1, initial_ptr, dx_ptr,
    ddelta_ptr, dz_ptr, dB_ptr, dC_ptr, dinitial_ptr, token, part_token, t, end, channels, c, n, at, inside,
    states: tl.constexpr, has_initial: tl.constexpr, softplus: tl.constexpr, gated: tl.constexpr, plain: tl.constexpr,
):  # fmt: skip
    """`_retreat` through the token t + 1, then t. h: the state before t."""
    step = if_real(step_size(d0, bias, softplus), p0, plain)
    full = tl.exp2(step[:, None] * A)
    h = met_by(h, p0, initial_ptr, channels, c, at, inside, has_initial, plain)
    between = full * h + (step * if_real(x0, p0, plain))[:, None] * if_real(B0, p0, plain)[None, :]
    between = met_by(between, p1, initial_ptr, channels, c, at, inside, has_initial, plain)
    later = tl.exp2(if_real(step_size(d1, bias, softplus), p1, plain)[:, None] * A)
    g, dA, dbias = _retreat(
        between, later, g, dA, dbias, A, D, bias, p1, x1, d1, B1, C1, z1, dy1, initial_ptr, dx_ptr, ddelta_ptr,
        dz_ptr, dB_ptr, dC_ptr, dinitial_ptr, token + 1, part_token + 1, t + 1 < end, channels, c, n, at, inside,
        states, has_initial, softplus, gated, plain,
    )  # fmt: skip
    return _retreat(
        h, full, g, dA, dbias, A, D, bias, p0, x0, d0, B0, C0, z0, dy0, initial_ptr, dx_ptr, ddelta_ptr, dz_ptr,
        dB_ptr, dC_ptr, dinitial_ptr, token, part_token, t < end, channels, c, n, at, inside, states, has_initial,
        softplus, gated, plain,
    )  # fmt: skip


@triton.jit(do_not_specialize=["time", "span", "rows"])
def backward(
    x_ptr, delta_ptr, bias_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, position_ptr, initial_ptr, kept_ptr, dy_ptr,
    dafter_ptr, scratch_ptr, dx_ptr, ddelta_ptr, dz_ptr, dB_ptr, dC_ptr, dA_ptr, dD_ptr, dbias_ptr, dinitial_ptr,
    dstate_ptr, rows, time, channels, z_row, span, states: tl.constexpr, has_initial: tl.constexpr,
    softplus: tl.constexpr, gated: tl.constexpr, chunk: tl.constexpr, block_d: tl.constexpr,
    block_n: tl.constexpr,
):  # fmt: skip
    """dafter: gradients of the states behind spans; dstate: of that before the first token."""
    row, c, n, at, inside = place(channels, states, block_d, block_n)
    A = tl.load(A_ptr + at, mask=inside, other=0.0) * LOG2_E
    D = tl.load(D_ptr + c, mask=c < channels, other=0.0)
    bias = bias_of(bias_ptr, channels, c, softplus)
    size = channels * states
    part = row * tl.num_programs(1) + tl.program_id(1)
    held = tl.arange(0, block_d)[:, None] * block_n + n[None, :]
    program = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    scratch = scratch_ptr + program * (chunk // 2 * block_d * block_n)
    block = (tl.program_id(0) % tl.cdiv(channels, block_d)).to(tl.int64)
    first = tl.program_id(1) * span
    end = tl.minimum(first + span, time)
    start = row * time
    part_start = (block * rows + row) * time
    g = tl.load(dafter_ptr + part * size + at, mask=inside, other=0.0)
    dA = tl.zeros((block_d, block_n), tl.float32)
    dD = tl.zeros((block_d,), tl.float32)
    dbias = tl.zeros((block_d,), tl.float32)
    dinitial = dinitial_ptr + part * size
    chunks = tl.cdiv(end - first, chunk)
    for i in range(0, chunks):
        begin = first + (chunks - 1 - i) * chunk
        h = tl.load(kept_ptr + (row * tl.cdiv(time, chunk) + begin // chunk) * size + at, mask=inside, other=0.0)
        p0, x0, d0, B0, _C, z0 = inputs_of(
            x_ptr, delta_ptr, B_ptr, B_ptr, z_ptr, position_ptr, start, begin, end, channels, z_row, c, n, states,
        )  # fmt: skip
        p1, x1, d1, B1, _C, z1 = inputs_of(
            x_ptr, delta_ptr, B_ptr, B_ptr, z_ptr, position_ptr, start, begin + 1, end, channels, z_row, c, n, states,
        )  # fmt: skip
        dy0 = read(dy_ptr, start + tl.minimum(begin, end - 1), channels, c)
        dy1 = read(dy_ptr, start + tl.minimum(begin + 1, end - 1), channels, c)
        tl.debug_barrier()
        tl.store(scratch + held, h)
        for pair in range(1, chunk // 2):
            t = begin + pair * 2
            q0, u0, e0, F0, _C, w0 = inputs_of(
                x_ptr, delta_ptr, B_ptr, B_ptr, z_ptr, position_ptr, start, t, end, channels, z_row, c, n, states,
            )  # fmt: skip
            q1, u1, e1, F1, _C, w1 = inputs_of(
                x_ptr, delta_ptr, B_ptr, B_ptr, z_ptr, position_ptr, start, t + 1, end, channels, z_row, c, n, states,
            )  # fmt: skip
            # gradients come from far away: they are used here, for dD, so the way back finds them near
            v0 = read(dy_ptr, start + tl.minimum(t, end - 1), channels, c)
            v1 = read(dy_ptr, start + tl.minimum(t + 1, end - 1), channels, c)
            dD += _gated_gradient(dy0, z0, p0, gated, False) * if_real(x0, p0, False)
            dD += _gated_gradient(dy1, z1, p1, gated, False) * if_real(x1, p1, False)
            if tl.minimum(p0, p1) > 0:
                h, _s = advance(
                    h, A, bias, p0, x0, d0, B0, initial_ptr, channels, c, at, inside, has_initial, softplus, True,
                )  # fmt: skip
                h, _s = advance(
                    h, A, bias, p1, x1, d1, B1, initial_ptr, channels, c, at, inside, has_initial, softplus, True,
                )  # fmt: skip
            else:
                h, _s = advance(
                    h, A, bias, p0, x0, d0, B0, initial_ptr, channels, c, at, inside, has_initial, softplus, False,
                )  # fmt: skip
                h, _s = advance(
                    h, A, bias, p1, x1, d1, B1, initial_ptr, channels, c, at, inside, has_initial, softplus, False,
                )  # fmt: skip
            p0, x0, d0, B0, z0, dy0 = q0, u0, e0, F0, w0, v0
            p1, x1, d1, B1, z1, dy1 = q1, u1, e1, F1, w1, v1
            tl.store(scratch + pair * (block_d * block_n) + held, h)
        dD += _gated_gradient(dy0, z0, p0, gated, False) * if_real(x0, p0, False)
        dD += _gated_gradient(dy1, z1, p1, gated, False) * if_real(x1, p1, False)
        tl.debug_barrier()
        last = begin + chunk - 1
        p0, x0, d0, B0, C0, z0 = inputs_of(
            x_ptr, delta_ptr, B_ptr, C_ptr, z_ptr, position_ptr, start, last - 1, end, channels, z_row, c, n, states,
        )  # fmt: skip
        p1, x1, d1, B1, C1, z1 = inputs_of(
            x_ptr, delta_ptr, B_ptr, C_ptr, z_ptr, position_ptr, start, last, end, channels, z_row, c, n, states,
        )  # fmt: skip
        dy0 = read(dy_ptr, start + tl.maximum(tl.minimum(last - 1, end - 1), 0), channels, c)
        dy1 = read(dy_ptr, start + tl.maximum(tl.minimum(last, end - 1), 0), channels, c)
        h = tl.load(scratch + (chunk // 2 - 1) * (block_d * block_n) + held)
        for j in range(0, chunk // 2):
            pair = chunk // 2 - 1 - j
            t = begin + pair * 2
            h_next = tl.load(scratch + tl.maximum(pair - 1, 0) * (block_d * block_n) + held)
            q0, u0, e0, F0, G0, w0 = inputs_of(
                x_ptr, delta_ptr, B_ptr, C_ptr, z_ptr, position_ptr, start, t - 2, end, channels, z_row, c, n, states,
            )  # fmt: skip
            q1, u1, e1, F1, G1, w1 = inputs_of(
                x_ptr, delta_ptr, B_ptr, C_ptr, z_ptr, position_ptr, start, t - 1, end, channels, z_row, c, n, states,
            )  # fmt: skip
            v0 = read(dy_ptr, start + tl.maximum(tl.minimum(t - 2, end - 1), 0), channels, c)
            v1 = read(dy_ptr, start + tl.maximum(tl.minimum(t - 1, end - 1), 0), channels, c)
            if tl.minimum(p0, p1) > 0:
                g, dA, dbias = _retreat_two(
                    h, g, dA, dbias, A, D, bias, p0, x0, d0, B0, C0, z0, dy0, p1, x1, d1, B1, C1, z1, dy1,
                    initial_ptr, dx_ptr, ddelta_ptr, dz_ptr, dB_ptr, dC_ptr, dinitial, start + t, part_start + t, t,
                    end, channels, c, n, at, inside, states, has_initial, softplus, gated, True,
                )  # fmt: skip
            else:
                g, dA, dbias = _retreat_two(
                    h, g, dA, dbias, A, D, bias, p0, x0, d0, B0, C0, z0, dy0, p1, x1, d1, B1, C1, z1, dy1,
                    initial_ptr, dx_ptr, ddelta_ptr, dz_ptr, dB_ptr, dC_ptr, dinitial, start + t, part_start + t, t,
                    end, channels, c, n, at, inside, states, has_initial, softplus, gated, False,
                )  # fmt: skip
            p0, x0, d0, B0, C0, z0, dy0 = q0, u0, e0, F0, G0, w0, v0
            p1, x1, d1, B1, C1, z1, dy1 = q1, u1, e1, F1, G1, w1, v1
            h = h_next
    tl.store(dA_ptr + part * size + at, dA, mask=inside)
    tl.store(dD_ptr + part * channels + c, dD, mask=c < channels)
    if softplus:
        tl.store(dbias_ptr + part * channels + c, dbias, mask=c < channels)
    tl.store(dstate_ptr + row * size + at, g, mask=only_if(first == 0, channels, c, inside))
