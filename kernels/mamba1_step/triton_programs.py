"""The programs of `triton`; what they do in which order stands there.

1. States are loaded as rows of consecutive numbers, channel after channel, and only then seen as channels x states: a
   warp reads 512 consecutive bytes, and the channels of a thread are the same in all rows, so A is taken once.
2. What does not depend on the launch before is asked for before it is waited for (`pdl`): above all the states, which
   are most bytes. Nothing is written before that.
3. A window is read in whole before it is written: threads may hold copies of the same value, and a slow one must not
   find what a fast one wrote.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda as tl_cuda

from nlrl.kernels.selective_scan.triton_programs import sigmoid, softplus_of

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rows_of(position_ptr, tile, rows, block: tl.constexpr):
    row = tile * block + tl.arange(0, block)
    return row.to(tl.int64), tl.load(position_ptr + row, mask=row < rows, other=-1).to(tl.int32)


@triton.jit
def _convolved(
    x_ptr, window_ptr, weight_ptr, bias_ptr, first_ptr, row, position, c, x_row, rows, channels, taps: tl.constexpr,
    has_bias: tl.constexpr, has_first: tl.constexpr,
):  # fmt: skip
    """silu of the convolution of some channels of some rows, rounded as a chain of ops would, zeros of padding; the
    newest input, and the window."""
    kind: tl.constexpr = x_ptr.dtype.element_ty
    mask, real = (row < rows)[:, None] & (c < channels)[None, :], (position >= 0)[:, None]
    newest = tl.load(x_ptr + row[:, None] * x_row + c[None, :], mask=mask, other=0.0)
    weight = tl.load(weight_ptr + c * taps + taps - 1, mask=c < channels, other=0.0).to(tl.float32)
    total = newest.to(tl.float32) * weight[None, :]
    if has_bias:
        total += tl.load(bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    window = ()
    for i in tl.static_range(taps - 1):
        at = window_ptr + (row[:, None] * (taps - 1) + i) * channels + c[None, :]
        old = tl.load(at, mask=mask, other=0.0)
        window = window + (old,)  # noqa: RUF005, Triton unpacks nothing
        value = tl.where((position >= taps - 1 - i)[:, None], old.to(kind).to(tl.float32), 0.0)
        if has_first:
            before = first_ptr + (position + i)[:, None] * channels + c[None, :]
            wanted = mask & real & (position < taps - 1 - i)[:, None]
            value += tl.load(before, mask=wanted, other=0.0).to(kind).to(tl.float32)
        weight = tl.load(weight_ptr + c * taps + i, mask=c < channels, other=0.0).to(tl.float32)
        total += value * weight[None, :]
    total = tl.where(real, total.to(kind).to(tl.float32), 0.0)
    return (total * sigmoid(total)).to(kind), newest, window


@triton.jit
def _scaled(mixed, o, dt_norm_ptr, B_norm_ptr, C_norm_ptr, eps, rank: tl.constexpr, states: tl.constexpr):
    """d, B and C, side by side, divided by their root mean squares."""
    is_d, is_B = o < rank, (o >= rank) & (o < rank + states)
    is_C = (o >= rank + states) & (o < rank + 2 * states)
    scale = tl.load(dt_norm_ptr + o, mask=is_d, other=0.0).to(tl.float32)
    scale += tl.load(B_norm_ptr + o - rank, mask=is_B, other=0.0).to(tl.float32)
    scale += tl.load(C_norm_ptr + o - rank - states, mask=is_C, other=0.0).to(tl.float32)
    square = mixed * mixed
    of_d = tl.rsqrt(tl.sum(tl.where(is_d[None, :], square, 0.0), 1) / rank + eps)[:, None]
    of_B = tl.rsqrt(tl.sum(tl.where(is_B[None, :], square, 0.0), 1) / states + eps)[:, None]
    of_C = tl.rsqrt(tl.sum(tl.where(is_C[None, :], square, 0.0), 1) / states + eps)[:, None]
    inverse = tl.where(is_d[None, :], of_d, tl.where(is_B[None, :], of_B, of_C))
    return mixed * inverse * scale[None, :]


@triton.jit(do_not_specialize=["rows"])
def project(
    x_ptr, window_ptr, weight_ptr, bias_ptr, first_ptr, position_ptr, X_ptr, dt_norm_ptr, B_norm_ptr, C_norm_ptr, u_ptr,
    parts_ptr, mixed_ptr, count_ptr, rows, x_row, channels, eps, rank: tl.constexpr, states: tl.constexpr,
    slices: tl.constexpr, slice_k: tl.constexpr, block_k: tl.constexpr, block_o: tl.constexpr, block_m: tl.constexpr,
    taps: tl.constexpr, has_bias: tl.constexpr, has_first: tl.constexpr, normed: tl.constexpr, pdl: tl.constexpr,
    stages: tl.constexpr, at_once: tl.constexpr,
):  # fmt: skip
    """Writes u, the new window, and for the last slice of a tile of rows d, B and C. at_once: slices that are on their
    way to the program that adds them up."""
    if pdl:
        tl_cuda.gdc_launch_dependents()
    outputs: tl.constexpr = rank + 2 * states
    row, position = _rows_of(position_ptr, tl.program_id(1), rows, block_m)
    o = tl.arange(0, block_o)
    total = tl.zeros((block_o, block_m), tl.float32)
    for start in tl.range(0, slice_k, block_k, num_stages=stages):
        c = tl.program_id(0) * slice_k + start + tl.arange(0, block_k)
        X = tl.load(X_ptr + o[:, None] * channels + c[None, :], mask=(o < outputs)[:, None] & (c < channels)[None, :],
                    other=0.0)  # fmt: skip
        u, newest, window = _convolved(
            x_ptr, window_ptr, weight_ptr, bias_ptr, first_ptr, row, position, c, x_row, rows, channels, taps, has_bias,
            has_first,
        )  # fmt: skip
        # X stands on the left: as the other operand u stays in shared memory, and is made once, not once for each warp
        total += tl.dot(X.to(u.dtype), tl.trans(u), input_precision="ieee")
        mask = (row < rows)[:, None] & (c < channels)[None, :]
        tl.store(u_ptr + row[:, None] * channels + c[None, :], u, mask=mask)
        tl.debug_barrier()  # all threads have read the window
        mask = mask & (position >= 0)[:, None]
        oldest = window_ptr + row[:, None] * (taps - 1) * channels + c[None, :]
        for i in tl.static_range(1, taps - 1):
            tl.store(oldest + (i - 1) * channels, window[i], mask=mask)
        tl.store(oldest + (taps - 2) * channels, newest.to(window_ptr.dtype.element_ty), mask=mask)
    inside = (row < rows)[:, None] & (o < outputs)[None, :]
    at = row[:, None] * outputs + o[None, :]
    tl.store(parts_ptr + tl.program_id(0).to(tl.int64) * rows * outputs + at, tl.trans(total), mask=inside)
    tl.debug_barrier()  # all threads have written before one says so
    count = count_ptr + tl.program_id(1)
    if tl.atomic_add(count, 1, sem="acq_rel") == slices - 1:
        tl.store(count, 0)  # for the next launch
        mixed = tl.zeros((block_m, block_o), tl.float32)
        part = parts_ptr + at
        for _ in range(slices // at_once):
            for _i in tl.static_range(at_once):
                mixed += tl.load(part, mask=inside, other=0.0, cache_modifier=".cg")
                part += rows * outputs
        for _i in tl.static_range(slices % at_once):
            mixed += tl.load(part, mask=inside, other=0.0, cache_modifier=".cg")
            part += rows * outputs
        if normed:
            mixed = _scaled(mixed, o, dt_norm_ptr, B_norm_ptr, C_norm_ptr, eps, rank, states)
        tl.store(mixed_ptr + at, mixed, mask=inside)


@triton.jit
def _matrix(W_ptr, dt_bias_ptr, c, channels, rank: tl.constexpr, block_r: tl.constexpr):
    """What makes d step sizes: the matrix, `(rank, channels)`, and a bias."""
    r = tl.arange(0, block_r)
    W = tl.load(W_ptr + c[None, :] * rank + r[:, None], mask=(c < channels)[None, :] & (r < rank)[:, None], other=0.0)
    return W, tl.load(dt_bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32)


@triton.jit
def _step_sizes(mixed_ptr, W, bias, row, rows, outputs: tl.constexpr, rank: tl.constexpr, block_r: tl.constexpr):
    r = tl.arange(0, block_r)
    mask = (row < rows)[:, None] & (r < rank)[None, :]
    d = tl.load(mixed_ptr + row[:, None] * outputs + r[None, :], mask=mask, other=0.0)
    return softplus_of(tl.dot(d.to(W.dtype), W, input_precision="ieee") + bias[None, :])


@triton.jit(do_not_specialize=["rows"])
def step_sizes(
    mixed_ptr, W_ptr, dt_bias_ptr, steps_ptr, rows, channels, rank: tl.constexpr, states: tl.constexpr,
    block_m: tl.constexpr, block_d: tl.constexpr, block_r: tl.constexpr, pdl: tl.constexpr,
):  # fmt: skip
    """Of all channels, `(rows, channels)` in float32."""
    if pdl:
        tl_cuda.gdc_launch_dependents()
    c = tl.program_id(0) * block_d + tl.arange(0, block_d)
    row = (tl.program_id(1) * block_m + tl.arange(0, block_m)).to(tl.int64)
    W, bias = _matrix(W_ptr, dt_bias_ptr, c, channels, rank, block_r)
    if pdl:
        tl_cuda.gdc_wait()
    delta = _step_sizes(mixed_ptr, W, bias, row, rows, rank + 2 * states, rank, block_r)
    mask = (row < rows)[:, None] & (c < channels)[None, :]
    tl.store(steps_ptr + row[:, None] * channels + c[None, :], delta, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def advance(
    u_ptr, gate_ptr, state_ptr, first_state_ptr, mixed_ptr, steps_ptr, W_ptr, dt_bias_ptr, A_log_ptr, D_ptr,
    position_ptr, y_ptr, rows, gate_row, channels, rank: tl.constexpr, states: tl.constexpr, block_m: tl.constexpr,
    block_d: tl.constexpr, block_r: tl.constexpr, block_n: tl.constexpr, has_first_state: tl.constexpr,
    own_steps: tl.constexpr, pdl: tl.constexpr,
):  # fmt: skip
    """The new state and the output. own_steps: makes the step sizes itself, for which it must have 16 rows."""
    outputs: tl.constexpr = rank + 2 * states
    row, position = _rows_of(position_ptr, tl.program_id(1), rows, block_m)
    c, n = tl.program_id(0) * block_d + tl.arange(0, block_d), tl.arange(0, block_n)
    flat = tl.arange(0, block_d * block_n)
    of_channel, of_state = tl.program_id(0) * block_d + flat // block_n, flat % block_n
    held = (of_channel < channels) & (of_state < states)
    at = of_channel * states + of_state
    if states == block_n:  # consecutive, which a compiler does not see above
        held, at = of_channel < channels, tl.program_id(0) * (block_d * block_n) + flat
    where = state_ptr + row[:, None] * channels * states + at[None, :]
    state = tl.load(where, mask=(row < rows)[:, None] & held[None, :], other=0.0)
    A = tl.load(A_log_ptr + at, mask=held, other=0.0)
    inside = (row < rows)[:, None] & (c < channels)[None, :]
    gate = tl.load(gate_ptr + row[:, None] * gate_row + c[None, :], mask=inside, other=0.0)
    D = tl.load(D_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    if own_steps:
        W, bias = _matrix(W_ptr, dt_bias_ptr, c, channels, rank, block_r)
    if pdl:
        tl_cuda.gdc_wait()
    u = tl.load(u_ptr + row[:, None] * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
    mixed = mixed_ptr + row[:, None] * outputs + rank + n[None, :]
    mask = (row < rows)[:, None] & (n < states)[None, :]
    B, C = tl.load(mixed, mask=mask, other=0.0), tl.load(mixed + states, mask=mask, other=0.0)
    if own_steps:
        delta = _step_sizes(mixed_ptr, W, bias, row, rows, outputs, rank, block_r)
    else:
        delta = tl.load(steps_ptr + row[:, None] * channels + c[None, :], mask=inside, other=0.0)
    state = tl.where((position > 0)[:, None], state.to(tl.float32), 0.0)
    if has_first_state:
        first = tl.load(first_state_ptr + at, mask=held, other=0.0).to(tl.float32)
        state = tl.where((position == 0)[:, None], first[None, :], state)
    A = tl.reshape(-tl.exp2(A.to(tl.float32) * LOG2_E) * LOG2_E, (1, block_d, block_n))
    state = tl.reshape(state, (block_m, block_d, block_n))
    state = tl.exp2(delta[:, :, None] * A) * state + (delta * u)[:, :, None] * B[:, None, :]
    y = tl.sum(state * C[:, None, :], 2) + D[None, :] * u
    state = tl.reshape(state, (block_m, block_d * block_n)).to(state_ptr.dtype.element_ty)
    tl.store(where, state, mask=(position >= 0)[:, None] & held[None, :])
    gate = tl.where((position >= 0)[:, None], gate.to(tl.float32), 0.0)
    y *= gate * sigmoid(gate)
    tl.store(y_ptr + row[:, None] * channels + c[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)
