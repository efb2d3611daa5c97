"""Programs of the depthwise causal convolution for CUDA; who launches them, and why so, is in `triton`.

Masks of loads know only places, so no load waits for positions; what a position rules out is set to zero afterwards,
whatever it is.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _weights(weight_ptr, c, channels, taps: tl.constexpr, block_k: tl.constexpr):
    """(channels, taps), as they lie in memory."""
    k = tl.arange(0, block_k)
    inside = (c < channels)[:, None] & (k < taps)[None, :]
    return tl.load(weight_ptr + c[:, None] * taps + k[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _tap(weights, back: tl.constexpr, taps: tl.constexpr, block_k: tl.constexpr):
    """Of every channel."""
    mine = tl.arange(0, block_k)[None, :] == taps - 1 - back
    return tl.sum(tl.where(mine, weights, 0.0), 1)


@triton.jit
def _silu_of(y):
    return y / (1.0 + tl.exp2(y * -1.4426950408889634))


@triton.jit
def _last_inputs(
    x_ptr, window_ptr, position_ptr, after_ptr, end_ptr, row, c, row_stride, token_stride, time, channels,
    taps: tl.constexpr, has_window: tl.constexpr, positions: tl.constexpr,
):  # fmt: skip
    """The K-1 inputs that end with the row's last token; and the number of places up to that."""
    end = 0
    for start in range(0, time, positions):
        t = start + tl.arange(0, positions)
        position = tl.load(position_ptr + row * time + t, mask=t < time, other=-1)
        end = tl.maximum(end, tl.max(tl.where(position >= 0, t + 1, 0)))
    tl.store(end_ptr + row, end)
    for i in tl.static_range(taps - 1):
        t = (end + i - (taps - 1)).to(tl.int64)
        own = tl.where(t >= 0, channels, 0)
        value = tl.load(x_ptr + row * row_stride + t * token_stride + c, mask=c < own, other=0.0)
        if has_window:
            old = window_ptr + (row * (taps - 1) + end + i) * channels + c
            value = tl.where(t >= 0, value, tl.load(old, mask=c < channels - own, other=0.0).to(value.dtype))
        tl.store(after_ptr + (row * (taps - 1) + i) * channels + c, value, mask=c < channels)


@triton.jit(do_not_specialize=["time", "steps"])
def forward(
    x_ptr, weight_ptr, bias_ptr, position_ptr, window_ptr, initial_ptr, dy_ptr, y_ptr, after_ptr, end_ptr,
    row_stride, token_stride, time, channels, steps, taps: tl.constexpr, has_bias: tl.constexpr,
    has_window: tl.constexpr, has_initial: tl.constexpr, silu: tl.constexpr, positions: tl.constexpr,
    block_t: tl.constexpr, block_c: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """silu: 1 takes it; 2: from gradients of that, writes those of the convolution's outputs."""
    blocks = tl.cdiv(channels, block_c)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    c = tl.program_id(0) % blocks * block_c + tl.arange(0, block_c)
    first = tl.program_id(1) * steps * block_t
    inside = (c < channels)[None, :]
    weights = _weights(weight_ptr, c, channels, taps, block_k)
    bias = tl.zeros((block_c,), tl.float32)
    if has_bias:
        bias = tl.load(bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    x_first = x_ptr + row * row_stride + first.to(tl.int64) * token_stride
    y_first = (row * time + first) * channels
    for step in range(steps):
        place = step * block_t + tl.arange(0, block_t)
        t = first + place
        position = tl.load(position_ptr + row * time + t, mask=t < time, other=-1)
        y = tl.zeros((block_t, block_c), tl.float32) + bias[None, :]
        for back in tl.static_range(taps):
            at = (place - back)[:, None] * token_stride + c[None, :]
            value = tl.load(x_first + at, mask=((t >= back) & (t < time))[:, None] & inside, other=0.0).to(tl.float32)
            value = tl.where((position >= back)[:, None], value, 0.0)
            if has_window and back > 0:
                old = (position >= back) & (t < back)
                at = (row * (taps - 1) + taps - 1 + t - back)[:, None] * channels + c[None, :]
                value += tl.load(window_ptr + at, mask=old[:, None] & inside, other=0.0).to(tl.float32)
            if has_initial and back > 0:
                before = (position >= 0) & (position < back)
                at = (position + taps - 1 - back)[:, None] * channels + c[None, :]
                value += tl.load(initial_ptr + at, mask=before[:, None] & inside, other=0.0).to(tl.float32)
            y += value * _tap(weights, back, taps, block_k)[None, :]
        at = place[:, None] * channels + c[None, :]
        if silu == 1:
            y = _silu_of(y)
        if silu == 2:
            share = 1.0 / (1.0 + tl.exp2(y * -1.4426950408889634))
            dy = tl.load(dy_ptr + y_first + at, mask=(t < time)[:, None] & inside, other=0.0).to(tl.float32)
            y = dy * share * (1.0 + y * (1.0 - share))
        y = tl.where((position >= 0)[:, None], y, 0.0)
        tl.store(y_ptr + y_first + at, y.to(y_ptr.dtype.element_ty), mask=(t < time)[:, None] & inside)
    if silu < 2:  # noqa: SIM102, what is known before the program runs stands alone
        if tl.program_id(1) == 0:
            _last_inputs(
                x_ptr, window_ptr, position_ptr, after_ptr, end_ptr, row, c, row_stride, token_stride, time, channels,
                taps, has_window, positions,
            )  # fmt: skip


@triton.jit
def update(
    x_ptr, weight_ptr, bias_ptr, position_ptr, window_ptr, initial_ptr, y_ptr, after_ptr, end_ptr, row_stride, channels,
    taps: tl.constexpr, has_bias: tl.constexpr, has_window: tl.constexpr, has_initial: tl.constexpr,
    silu: tl.constexpr, block_c: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """One token of a row: every load is on its way before the first is there, but for `initial`'s."""
    row = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * block_c + tl.arange(0, block_c)
    inside = c < channels
    position = tl.load(position_ptr + row)
    x = tl.load(x_ptr + row * row_stride + c, mask=inside, other=0.0)
    weights = _weights(weight_ptr, c, channels, taps, block_k)
    y = x.to(tl.float32) * _tap(weights, 0, taps, block_k)
    if has_bias:
        y += tl.load(bias_ptr + c, mask=inside, other=0.0).to(tl.float32)
    window = row * (taps - 1) * channels + c
    before = tl.zeros((block_c,), x_ptr.dtype.element_ty)
    for i in tl.static_range(taps - 1):
        old = tl.zeros((block_c,), x_ptr.dtype.element_ty)
        if has_window:
            old = tl.load(window_ptr + window + i * channels, mask=inside, other=0.0)
        if i > 0:
            tl.store(after_ptr + window + (i - 1) * channels, tl.where(position >= 0, old, before), mask=inside)
        before = old
        value = tl.where(position >= taps - 1 - i, old, 0.0).to(tl.float32)
        if has_initial:
            early = tl.where((position >= 0) & (position < taps - 1 - i), channels, 0)
            at = initial_ptr + (position + i) * channels + c
            value += tl.load(at, mask=c < early, other=0.0).to(tl.float32)
        y += value * _tap(weights, taps - 1 - i, taps, block_k)
    tl.store(after_ptr + window + (taps - 2) * channels, tl.where(position >= 0, x, before), mask=inside)
    if silu:
        y = _silu_of(y)
    y = tl.where(position >= 0, y, 0.0)
    tl.store(y_ptr + row * channels + c, y.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(end_ptr + row, (position >= 0).to(tl.int32))


@triton.jit(do_not_specialize=["time", "steps"])
def backward(
    x_ptr, weight_ptr, position_ptr, window_ptr, end_ptr, dy_ptr, dafter_ptr, dx_ptr, dwindow_ptr, sums_ptr,
    row_stride, token_stride, time, channels, steps, taps: tl.constexpr, has_window: tl.constexpr,
    has_initial: tl.constexpr, has_dafter: tl.constexpr, block_t: tl.constexpr, block_c: tl.constexpr,
    block_k: tl.constexpr,
):  # fmt: skip
    """sums: for each program the gradient of the weight, all dy, and, with `initial`, dy of the positions 0 .. K-2."""
    blocks = tl.cdiv(channels, block_c)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    c = tl.program_id(0) % blocks * block_c + tl.arange(0, block_c)
    first = tl.program_id(1) * steps * block_t - (taps - 1 if has_window else 0)
    inside = (c < channels)[None, :]
    k = tl.arange(0, block_k)
    weights = _weights(weight_ptr, c, channels, taps, block_k)
    x_first = x_ptr + row * row_stride + first.to(tl.int64) * token_stride
    y_first = (row * time + first) * channels
    total = tl.zeros((block_t, block_c), tl.float32)
    heads = tl.zeros((block_k, block_c), tl.float32)
    dweights = ()
    for _ in tl.static_range(taps):
        dweights = dweights + (tl.zeros((block_t, block_c), tl.float32),)  # noqa: RUF005, Triton cannot unpack
    for step in range(steps):
        place = step * block_t + tl.arange(0, block_t)
        t = first + place
        here = (t >= 0) & (t < time)
        position = tl.load(position_ptr + row * time + t, mask=here, other=-1)
        at = place[:, None] * token_stride + c[None, :]
        value = tl.load(x_first + at, mask=here[:, None] & inside, other=0.0).to(tl.float32)
        value = tl.where((position >= 0)[:, None], value, 0.0)
        old_at = (row * (taps - 1) + taps - 1 + t)[:, None] * channels + c[None, :]
        if has_window:
            value += tl.load(window_ptr + old_at, mask=(t < 0)[:, None] & inside, other=0.0).to(tl.float32)
        dvalue = tl.zeros((block_t, block_c), tl.float32)
        grown = ()
        for back in tl.static_range(taps):
            there = (t + back >= 0) & (t + back < time)
            seen = tl.load(position_ptr + row * time + t + back, mask=there, other=-1)
            at = (place + back)[:, None] * channels + c[None, :]
            dy = tl.load(dy_ptr + y_first + at, mask=there[:, None] & inside, other=0.0).to(tl.float32)
            dy = tl.where((seen >= back)[:, None], dy, 0.0)
            dvalue += dy * _tap(weights, back, taps, block_k)[None, :]
            grown = grown + (dweights[back] + dy * value,)  # noqa: RUF005
            if back == 0:
                total += dy
                if has_initial:
                    for p in tl.static_range(taps - 1):
                        head = tl.where((position == p)[:, None], dy, 0.0)
                        heads += tl.where((k == p)[:, None], tl.sum(head, 0)[None, :], 0.0)
        dweights = grown
        if has_dafter:
            i = t + taps - 1 - tl.load(end_ptr + row)
            dafter_at = (row * (taps - 1) + i)[:, None] * channels + c[None, :]
            left = (i >= 0) & (i < taps - 1) & (t < time)
            dvalue += tl.load(dafter_ptr + dafter_at, mask=left[:, None] & inside, other=0.0).to(tl.float32)
        at = place[:, None] * channels + c[None, :]
        tl.store(dx_ptr + y_first + at, dvalue.to(dx_ptr.dtype.element_ty), mask=here[:, None] & inside)
        if has_window:
            tl.store(dwindow_ptr + old_at, dvalue.to(dwindow_ptr.dtype.element_ty), mask=(t < 0)[:, None] & inside)
    slots: tl.constexpr = taps + 1 + (taps - 1 if has_initial else 0)
    sums_ptr += (row * tl.num_programs(1) + tl.program_id(1)) * slots * channels
    for back in tl.static_range(taps):
        tl.store(sums_ptr + (taps - 1 - back) * channels + c, tl.sum(dweights[back], 0), mask=c < channels)
    tl.store(sums_ptr + taps * channels + c, tl.sum(total, 0), mask=c < channels)
    if has_initial:
        at = (taps + 1 + k)[:, None] * channels + c[None, :]
        tl.store(sums_ptr + at, heads, mask=(k < taps - 1)[:, None] & inside)
