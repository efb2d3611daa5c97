"""The depthwise causal convolution for CUDA; formulas in `reference`.

1. A program holds some tokens of some channels and reads each tap where it lies: the call's inputs, the window or
   `initial`. No tensor with both window and inputs is made. Inputs may be a slice of wider rows, as they often are.
2. The first program of a row and channels also writes the new window.
3. The backward's programs hold inputs, those of the window included, and look at the outputs that saw them: the same
   products give an input's gradient and, summed, the weight's. What is a sum over tokens is written in parts, added up
   in a fixed order. What `initial` did depends on the position alone, so its gradient needs only sums of output
   gradients for each of the first K-1 positions.
4. Padding is never read; its output and its gradients are zeros.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nlrl.kernels.causal_conv1d.eager import causal_conv1d as eager
from nlrl.kernels.causal_conv1d.eager import head

TOKENS, CHANNELS = 32, 64
"""Of a program, at most."""
VALUES_PER_WARP = 512
POSITIONS = 1024
"""Read at once to find a row's last token."""


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


@triton.jit(do_not_specialize=["time"])
def _forward(
    x_ptr, weight_ptr, bias_ptr, position_ptr, window_ptr, initial_ptr, dy_ptr, y_ptr, after_ptr, end_ptr,
    row_stride, token_stride, time, channels, taps: tl.constexpr, has_bias: tl.constexpr, has_window: tl.constexpr,
    has_initial: tl.constexpr, silu: tl.constexpr, positions: tl.constexpr, block_t: tl.constexpr,
    block_c: tl.constexpr,
):  # fmt: skip
    """silu: 1 takes it; 2: from gradients of that, writes those of the convolution's outputs."""
    blocks = tl.cdiv(channels, block_c)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    c = tl.program_id(0) % blocks * block_c + tl.arange(0, block_c)
    t = tl.program_id(1) * block_t + tl.arange(0, block_t)
    position = tl.load(position_ptr + row * time + t, mask=t < time, other=-1)
    inside = (c < channels)[None, :]
    y = tl.zeros((block_t, block_c), tl.float32)
    if has_bias:
        y += tl.load(bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    for back in tl.static_range(taps):
        own = (position >= back) & (t >= back)
        at = row * row_stride + (t - back).to(tl.int64)[:, None] * token_stride + c[None, :]
        value = tl.load(x_ptr + at, mask=own[:, None] & inside, other=0.0).to(tl.float32)
        if has_window and back > 0:
            old = (position >= back) & (t < back)
            at = (row * (taps - 1) + taps - 1 + t - back)[:, None] * channels + c[None, :]
            value += tl.load(window_ptr + at, mask=old[:, None] & inside, other=0.0).to(tl.float32)
        if has_initial and back > 0:
            before = (position >= 0) & (position < back)
            at = (position + taps - 1 - back)[:, None] * channels + c[None, :]
            value += tl.load(initial_ptr + at, mask=before[:, None] & inside, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + c * taps + (taps - 1 - back), mask=c < channels, other=0.0).to(tl.float32)
        y += value * weight[None, :]
    at = (row * time + t)[:, None] * channels + c[None, :]
    if silu > 0:
        share = 1.0 / (1.0 + tl.exp2(y * -1.4426950408889634))
        if silu == 2:
            dy = tl.load(dy_ptr + at, mask=(position >= 0)[:, None] & inside, other=0.0).to(tl.float32)
            y = dy * share * (1.0 + y * (1.0 - share))
        else:
            y *= share
    y = tl.where((position >= 0)[:, None], y, 0.0)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=(t < time)[:, None] & inside)
    if silu < 2:  # noqa: SIM102, what is known before the program runs stands alone
        if tl.program_id(1) == 0:
            _last_inputs(
                x_ptr, window_ptr, position_ptr, after_ptr, end_ptr, row, c, row_stride, token_stride, time, channels,
                taps, has_window, positions,
            )  # fmt: skip


@triton.jit(do_not_specialize=["time"])
def _backward(
    x_ptr, weight_ptr, position_ptr, window_ptr, end_ptr, dy_ptr, dafter_ptr, dx_ptr, dwindow_ptr, sums_ptr,
    row_stride, token_stride, time, channels, taps: tl.constexpr, has_window: tl.constexpr, has_dafter: tl.constexpr,
    block_t: tl.constexpr, block_c: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """sums: for each program the gradient of the weight by `back`, then dy of the positions 0 .. K-2, then all dy."""
    blocks = tl.cdiv(channels, block_c)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    c = tl.program_id(0) % blocks * block_c + tl.arange(0, block_c)
    t = tl.program_id(1) * block_t + tl.arange(0, block_t)
    inside = (c < channels)[None, :]
    k = tl.arange(0, block_k)
    if has_window:
        t -= taps - 1
    position = tl.load(position_ptr + row * time + t, mask=(t >= 0) & (t < time), other=-1)
    old_at = (row * (taps - 1) + taps - 1 + t)[:, None] * channels + c[None, :]
    at = row * row_stride + t.to(tl.int64)[:, None] * token_stride + c[None, :]
    value = tl.load(x_ptr + at, mask=(position >= 0)[:, None] & inside, other=0.0).to(tl.float32)
    if has_window:
        value += tl.load(window_ptr + old_at, mask=(t < 0)[:, None] & inside, other=0.0).to(tl.float32)
    dvalue = tl.zeros((block_t, block_c), tl.float32)
    sums = tl.zeros((block_k, block_c), tl.float32)
    for back in tl.static_range(taps):
        seen = t + back
        place = tl.load(position_ptr + row * time + seen, mask=(seen >= 0) & (seen < time), other=-1)
        dy_at = (row * time + seen)[:, None] * channels + c[None, :]
        dy = tl.load(dy_ptr + dy_at, mask=(place >= back)[:, None] & inside, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + c * taps + (taps - 1 - back), mask=c < channels, other=0.0).to(tl.float32)
        dvalue += dy * weight[None, :]
        sums += tl.where((k == back)[:, None], tl.sum(dy * value, 0)[None, :], 0.0)
        if back == 0:
            sums += tl.where((k == 2 * taps - 1)[:, None], tl.sum(dy, 0)[None, :], 0.0)
            if tl.min(tl.where(place >= 0, place, taps)) < taps - 1:  # few programs hold a document's beginning
                for p in tl.static_range(taps - 1):
                    first = tl.where((place == p)[:, None], dy, 0.0)
                    sums += tl.where((k == taps + p)[:, None], tl.sum(first, 0)[None, :], 0.0)
    if has_dafter:
        i = t + taps - 1 - tl.load(end_ptr + row)
        dafter_at = (row * (taps - 1) + i)[:, None] * channels + c[None, :]
        left = (i >= 0) & (i < taps - 1) & (t < time)
        dvalue += tl.load(dafter_ptr + dafter_at, mask=left[:, None] & inside, other=0.0).to(tl.float32)
    dx_at = (row * time + t)[:, None] * channels + c[None, :]
    tl.store(dx_ptr + dx_at, dvalue.to(dx_ptr.dtype.element_ty), mask=((t >= 0) & (t < time))[:, None] & inside)
    if has_window:
        tl.store(dwindow_ptr + old_at, dvalue.to(dwindow_ptr.dtype.element_ty), mask=(t < 0)[:, None] & inside)
    part = (row * tl.num_programs(1) + tl.program_id(1)) * (2 * taps)
    tl.store(sums_ptr + (part + k)[:, None] * channels + c[None, :], sums, mask=(k < 2 * taps)[:, None] & inside)


class CausalConv1d(torch.autograd.Function):
    """x: channels side by side, any other strides; the others contiguous; at least two taps."""

    @staticmethod
    def forward(ctx, x, weight, bias, position_ids, window, initial, silu) -> tuple[Tensor, Tensor]:
        y, after, end = _run(x, weight, bias, position_ids, window, initial, silu)
        ctx.save_for_backward(x, weight, bias, position_ids, window, initial, end)
        ctx.silu = silu
        ctx.set_materialize_grads(False)
        return y, after

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dafter) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, bias, position_ids, window, initial, end = ctx.saved_tensors
        dx = x.new_empty(x.shape)
        dwindow = None if window is None else torch.empty_like(window)
        if dy is not None and ctx.silu:
            dy = _run(x, weight, bias, position_ids, window, initial, 2, dy.contiguous())[0]
        dy = x.new_zeros(x.shape) if dy is None else dy.contiguous()
        rows, time, channels = x.shape
        taps = weight.shape[1]
        tile = _tile(time, channels)
        reach = time if window is None else time + taps - 1
        grid = (rows * triton.cdiv(channels, tile["block_c"]), triton.cdiv(reach, tile["block_t"]))
        sums = x.new_empty((rows, grid[1], 2 * taps, channels), dtype=torch.float32)
        with torch.cuda.device_of(x):
            _backward[grid](
                x, weight, position_ids, x if window is None else window, end, dy,
                dy if dafter is None else dafter.contiguous(), dx, dx if dwindow is None else dwindow, sums,
                x.stride(0), x.stride(1), time, channels, taps, window is not None, dafter is not None,
                block_k=triton.next_power_of_2(2 * taps), **tile,
            )  # fmt: skip
        sums = sums.sum((0, 1))
        dweight, dinitial = sums[:taps].flip(0).T, None
        if initial is not None:
            through_weight, dinitial = _through_initial(weight, initial, sums[taps:-1])
            dweight = dweight + through_weight
        dbias = None if bias is None else sums[-1].to(bias.dtype)
        return dx, dweight.to(weight.dtype), dbias, None, dwindow, dinitial, None


def _run(x, weight, bias, position_ids, window, initial, silu, dy=None) -> tuple[Tensor, Tensor, Tensor]:
    """y, the new window and how many places each row has up to its last token, int32; given dy, the gradient of what
    silu is taken of, and noise."""
    rows, time, channels = x.shape
    taps = weight.shape[1]
    tile = _tile(time, channels)
    grid = (rows * triton.cdiv(channels, tile["block_c"]), triton.cdiv(time, tile["block_t"]))
    y, after = x.new_empty(x.shape), x.new_empty((rows, taps - 1, channels))
    end = position_ids.new_empty((rows,), dtype=torch.int32)
    with torch.cuda.device_of(x):
        _forward[grid](
            x, weight, x if bias is None else bias, position_ids, x if window is None else window,
            x if initial is None else initial, x if dy is None else dy, y, after, end, x.stride(0), x.stride(1), time,
            channels, taps, bias is not None, window is not None, initial is not None, silu, POSITIONS, **tile,
        )  # fmt: skip
    return y, after, end


def _tile(time: int, channels: int) -> dict[str, int]:
    block_t, block_c = min(TOKENS, triton.next_power_of_2(time)), min(CHANNELS, triton.next_power_of_2(channels))
    return {"block_t": block_t, "block_c": block_c, "num_warps": max(1, block_t * block_c // VALUES_PER_WARP)}


def _through_initial(weight: Tensor, initial: Tensor, dhead: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight, in float32, and of initial from those of what it adds to the first K-1 positions."""
    with torch.enable_grad():
        leaves = [tensor.detach().float().requires_grad_() for tensor in (weight, initial)]
        dweight, dinitial = torch.autograd.grad(head(*leaves), leaves, dhead)
    return dweight, dinitial.to(initial.dtype)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position_ids: Tensor,
    window: Tensor | None = None,
    initial: Tensor | None = None,
    silu: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `reference.causal_conv1d`; and, if asked for, silu of its outputs, which the backward makes again. `eager`
    does what does not fit here: float64, a single tap."""
    given = [tensor.dtype for tensor in (x, weight, bias, window, initial) if tensor is not None]
    if torch.float64 in given or weight.shape[1] == 1 or not x.numel():
        y, after = eager(x, weight, bias, position_ids, window, initial)
        return F.silu(y) if silu else y, after
    x = x if x.stride(2) == 1 else x.contiguous()
    weight, position_ids = weight.contiguous(), position_ids.contiguous()
    bias, initial = (None if tensor is None else tensor.contiguous() for tensor in (bias, initial))
    window = None if window is None else window.to(x.dtype).contiguous()
    if not torch.is_grad_enabled():
        return _run(x, weight, bias, position_ids, window, initial, int(silu))[:2]
    return CausalConv1d.apply(x, weight, bias, position_ids, window, initial, int(silu))  # pyright: ignore
