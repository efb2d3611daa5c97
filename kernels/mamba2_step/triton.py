"""One token of a Mamba-2 mixer for CUDA, in one launch.

A program holds the state of one head of one row: it makes its own convolved x, B and C from the window (B and C are a
fraction of the state), updates the state, and writes g and the sum of its squares. The last of a row's programs to be
done, by a count in memory, shifts the row's window, which nobody reads any more, and divides g by its root mean square.
Sums are added in the order of heads whoever is last, so equal inputs give equal bits.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nlrl.kernels.counters import counter
from nlrl.kernels.mamba2_step.eager import mamba2_step as eager

LARGEST_STATE = 32768
"""Numbers of one head's state that a program can hold."""
CHANNELS = 2048
"""That the last program of a row treats at once."""


@triton.jit
def _silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def _convolved(
    mixed_ptr, window_ptr, weight_ptr, bias_ptr, c, inside, channels, position, taps: tl.constexpr,
    has_bias: tl.constexpr,
):  # fmt: skip
    # silu of the convolution of some channels of the row; inputs before a document's beginning are zeros.
    total = tl.load(mixed_ptr + c, mask=inside, other=0.0).to(tl.float32)
    total *= tl.load(weight_ptr + c * taps + taps - 1, mask=inside, other=0.0).to(tl.float32)
    if has_bias:
        total += tl.load(bias_ptr + c, mask=inside, other=0.0).to(tl.float32)
    places = position + 0 * c  # a mask of one value has another type in the interpreter
    for back in tl.static_range(1, taps):
        seen = inside & (places >= back)
        value = tl.load(window_ptr + (taps - 1 - back) * channels + c, mask=seen, other=0.0).to(tl.float32)
        total += value * tl.load(weight_ptr + c * taps + taps - 1 - back, mask=inside, other=0.0).to(tl.float32)
    return _silu(total.to(mixed_ptr.dtype.element_ty).to(tl.float32)).to(mixed_ptr.dtype.element_ty).to(tl.float32)


@triton.jit
def _finish(
    mixed_ptr, window_ptr, g_ptr, squares_ptr, weight_ptr, y_ptr, position, channels, inner, eps,
    heads: tl.constexpr, block_heads: tl.constexpr, norm_groups: tl.constexpr, taps: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    for start in range(0, channels, block):
        c = start + tl.arange(0, block)
        inside = (c < channels) & (position + 0 * c >= 0)
        for i in tl.static_range(taps - 2):
            moved = tl.load(window_ptr + (i + 1) * channels + c, mask=inside, other=0.0)
            tl.store(window_ptr + i * channels + c, moved, mask=inside)
        newest = tl.load(mixed_ptr + c, mask=inside, other=0.0)
        tl.store(window_ptr + (taps - 2) * channels + c, newest.to(window_ptr.dtype.element_ty), mask=inside)
    head = tl.arange(0, block_heads)
    size = inner // norm_groups
    for group in tl.static_range(norm_groups):
        mine = (head < heads) & (head // (heads // norm_groups) == group)
        total = tl.sum(tl.load(squares_ptr + head, mask=mine, other=0.0), 0)
        scale = tl.rsqrt(total / size + eps)
        for start in range(0, size, block):
            c = start + tl.arange(0, block)
            g = tl.load(g_ptr + group * size + c, mask=c < size, other=0.0)
            weight = tl.load(weight_ptr + group * size + c, mask=c < size, other=0.0).to(tl.float32)
            tl.store(y_ptr + group * size + c, (g * scale * weight).to(y_ptr.dtype.element_ty), mask=c < size)


@triton.jit
def _step(
    projected_ptr, window_ptr, state_ptr, conv_weight_ptr, conv_bias_ptr, A_log_ptr, D_ptr, dt_bias_ptr, norm_ptr,
    position_ptr, g_ptr, squares_ptr, count_ptr, y_ptr, projected_row, channels, eps,
    heads: tl.constexpr, per_group: tl.constexpr, P: tl.constexpr, N: tl.constexpr, block_p: tl.constexpr,
    block_n: tl.constexpr, block_heads: tl.constexpr, norm_groups: tl.constexpr, taps: tl.constexpr,
    has_bias: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    inner = heads * P
    position = tl.load(position_ptr + row)
    p, n = tl.arange(0, block_p), tl.arange(0, block_n)
    z_ptr = projected_ptr + row * projected_row
    mixed_ptr, window_ptr = z_ptr + inner, window_ptr + row * (taps - 1) * channels
    x = _convolved(mixed_ptr, window_ptr, conv_weight_ptr, conv_bias_ptr, head * P + p, p < P, channels, position,
                   taps, has_bias)  # fmt: skip
    at = inner + head // per_group * N + n
    B = _convolved(mixed_ptr, window_ptr, conv_weight_ptr, conv_bias_ptr, at, n < N, channels, position, taps, has_bias)
    at += heads // per_group * N
    C = _convolved(mixed_ptr, window_ptr, conv_weight_ptr, conv_bias_ptr, at, n < N, channels, position, taps, has_bias)
    dt = tl.load(mixed_ptr + channels + head).to(tl.float32) + tl.load(dt_bias_ptr + head).to(tl.float32)
    dt = tl.where(dt > 20.0, dt, tl.log(1.0 + tl.exp(dt)))
    dt = tl.where(position < 0, 0.0, dt)
    decay = tl.where(position == 0, 0.0, tl.exp(-dt * tl.exp(tl.load(A_log_ptr + head).to(tl.float32))))
    where = state_ptr + ((row * heads + head) * P + p[:, None]) * N + n[None, :]
    inside = (p < P)[:, None] & (n < N)[None, :]
    state = decay * tl.load(where, mask=inside, other=0.0).to(tl.float32) + (dt * x)[:, None] * B[None, :]
    tl.store(where, state.to(state_ptr.dtype.element_ty), mask=inside)
    y = tl.sum(state * C[None, :], 1) + tl.load(D_ptr + head).to(tl.float32) * x
    y = y.to(projected_ptr.dtype.element_ty).to(tl.float32)  # as the chain of ops has it
    g = y * _silu(tl.load(z_ptr + head * P + p, mask=p < P, other=0.0).to(tl.float32))
    tl.store(g_ptr + row * inner + head * P + p, g, mask=p < P)
    tl.store(squares_ptr + row * heads + head, tl.sum(tl.where(p < P, g * g, 0.0), 0))
    tl.debug_barrier()  # all threads have written before one says so
    if tl.atomic_add(count_ptr + row, 1, sem="acq_rel") == heads - 1:
        tl.store(count_ptr + row, 0)  # for the next launch
        _finish(
            mixed_ptr, window_ptr, g_ptr + row * inner, squares_ptr + row * heads, norm_ptr, y_ptr + row * inner,
            position, channels, inner, eps, heads, block_heads, norm_groups, taps, block,
        )  # fmt: skip


def mamba2_step(
    projected: Tensor,
    window: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    A_log: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    positions: Tensor,
    eps: float,
    groups: int = 1,
    norm_groups: int = 1,
) -> Tensor:
    """See `reference.mamba2_step`; `eager` takes float64, states too large for a program, and windows with gaps."""
    (rows, heads, head_dim, states), inner = state.shape, len(norm_weight)
    block_p, block_n = triton.next_power_of_2(head_dim), triton.next_power_of_2(states)
    # A column of positions that rows share has a stride of zero, and one of a batch that of the batch.
    conv_weight, A_log, D, dt_bias, norm_weight, positions = (
        part.contiguous() for part in (conv_weight, A_log, D, dt_bias, norm_weight, positions)
    )
    conv_bias = None if conv_bias is None else conv_bias.contiguous()
    even = window.is_contiguous() and state.is_contiguous() and projected.stride(-1) == 1
    if projected.dtype == torch.float64 or block_p * block_n > LARGEST_STATE or not even or not rows:
        return eager(
            projected, window, state, conv_weight, conv_bias, A_log, D, dt_bias, norm_weight, positions, eps, groups,
            norm_groups,
        )  # fmt: skip
    y = torch.empty((rows, inner), dtype=norm_weight.dtype, device=projected.device)
    g, squares = (torch.empty((rows, size), dtype=torch.float32, device=y.device) for size in (inner, heads))
    with torch.cuda.device_of(projected):
        _step[(rows * heads,)](
            projected, window, state, conv_weight, D if conv_bias is None else conv_bias, A_log, D, dt_bias,
            norm_weight, positions, g, squares, counter(rows, projected.device), y, projected.stride(0),
            len(conv_weight), eps,
            heads=heads, per_group=heads // groups, P=head_dim, N=states, block_p=block_p, block_n=block_n,
            block_heads=triton.next_power_of_2(heads), norm_groups=norm_groups, taps=conv_weight.shape[1],
            has_bias=conv_bias is not None, block=min(CHANNELS, triton.next_power_of_2(len(conv_weight))),
            num_warps=4 if block_p * block_n <= 8192 else 8,
        )  # fmt: skip
    return y
