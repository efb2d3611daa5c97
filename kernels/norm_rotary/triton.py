"""Turn, norm and scale for CUDA: one pass forward, one backward.

A program holds some heads of a token, so that cos and sin are read once for all. Backwards it goes through a fixed set
of tokens and sums their part of the gradient of the scales; the parts are added in a fixed order afterwards.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nlrl.kernels.norm_rotary.eager import norm_rotary as eager

PAIRS_PER_PROGRAM = 1024
PROGRAMS_PER_PROCESSOR = 8
"""Of the backward pass."""


@triton.jit
def _channels(head, pair, heads, half, head_stride, interleaved: tl.constexpr):
    # Places of the first channels of pairs, how far the second are, and whether they exist.
    if interleaved:
        first, apart = 2 * pair, 1
    else:
        first, apart = pair, half
    return head[:, None] * head_stride + first[None, :], apart, (head < heads)[:, None] & (pair < half)[None, :]


@triton.jit(do_not_specialize=["time"])
def _forward(
    x_ptr, cos_ptr, sin_ptr, scale_ptr, y_ptr, time, eps, x_row, x_token, x_head, angle_row, angle_token,
    heads: tl.constexpr, half: tl.constexpr, interleaved: tl.constexpr, tile: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    row, at_time = token // time, token % time
    head, pair = tl.program_id(1) * tile + tl.arange(0, tile), tl.arange(0, block)
    x_at, apart, inside = _channels(head, pair, heads, half, x_head, interleaved)
    x_ptr += row * x_row + at_time * x_token
    a = tl.load(x_ptr + x_at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + x_at + apart, mask=inside, other=0.0).to(tl.float32)
    angle = row * angle_row + at_time * angle_token + pair
    cos = tl.load(cos_ptr + angle, mask=pair < half, other=0.0)[None, :]
    sin = tl.load(sin_ptr + angle, mask=pair < half, other=0.0)[None, :]
    r = tl.rsqrt(tl.sum(a * a + b * b, 1) / (2 * half) + eps)[:, None]
    at, apart, inside = _channels(head, pair, heads, half, 2 * half, interleaved)
    scale_a = tl.load(scale_ptr + at, mask=inside, other=0.0).to(tl.float32)
    scale_b = tl.load(scale_ptr + at + apart, mask=inside, other=0.0).to(tl.float32)
    y_ptr += token * heads * 2 * half
    tl.store(y_ptr + at, ((a * cos - b * sin) * r * scale_a).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(y_ptr + at + apart, ((b * cos + a * sin) * r * scale_b).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens", "time"])
def _backward(
    x_ptr, cos_ptr, sin_ptr, scale_ptr, dy_ptr, dx_ptr, dscale_ptr, tokens, time, eps, x_row, x_token, x_head,
    angle_row, angle_token,
    heads: tl.constexpr, half: tl.constexpr, interleaved: tl.constexpr, tile: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    head, pair = tl.program_id(1) * tile + tl.arange(0, tile), tl.arange(0, block)
    at, apart, inside = _channels(head, pair, heads, half, 2 * half, interleaved)
    x_at, x_apart, x_inside = _channels(head, pair, heads, half, x_head, interleaved)
    scale_a = tl.load(scale_ptr + at, mask=inside, other=0.0).to(tl.float32)
    scale_b = tl.load(scale_ptr + at + apart, mask=inside, other=0.0).to(tl.float32)
    dscale_a = tl.zeros((tile, block), tl.float32)
    dscale_b = tl.zeros((tile, block), tl.float32)
    for number in range(tl.program_id(0), tokens, tl.num_programs(0)):
        token = tl.zeros((), tl.int64) + number
        row, at_time = token // time, token % time
        x = x_ptr + row * x_row + at_time * x_token
        a = tl.load(x + x_at, mask=x_inside, other=0.0).to(tl.float32)
        b = tl.load(x + x_at + x_apart, mask=x_inside, other=0.0).to(tl.float32)
        angle = row * angle_row + at_time * angle_token + pair
        cos = tl.load(cos_ptr + angle, mask=pair < half, other=0.0)[None, :]
        sin = tl.load(sin_ptr + angle, mask=pair < half, other=0.0)[None, :]
        dy = dy_ptr + token * heads * 2 * half
        dy_a = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        dy_b = tl.load(dy + at + apart, mask=inside, other=0.0).to(tl.float32)
        r = tl.rsqrt(tl.sum(a * a + b * b, 1) / (2 * half) + eps)[:, None]
        a *= r
        b *= r
        dscale_a += dy_a * (a * cos - b * sin)
        dscale_b += dy_b * (b * cos + a * sin)
        dy_a *= scale_a
        dy_b *= scale_b
        g_a, g_b = dy_a * cos + dy_b * sin, dy_b * cos - dy_a * sin
        mean = (tl.sum(g_a * a + g_b * b, 1) / (2 * half))[:, None]
        dx = dx_ptr + token * heads * 2 * half
        tl.store(dx + at, ((g_a - a * mean) * r).to(dx_ptr.dtype.element_ty), mask=inside)
        tl.store(dx + at + apart, ((g_b - b * mean) * r).to(dx_ptr.dtype.element_ty), mask=inside)
    dscale_ptr += tl.program_id(0).to(tl.int64) * heads * 2 * half
    tl.store(dscale_ptr + at, dscale_a, mask=inside)
    tl.store(dscale_ptr + at + apart, dscale_b, mask=inside)


class NormRotary(torch.autograd.Function):
    """Keeps its input alone."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor, scale: Tensor, eps: float, interleaved: bool) -> Tensor:
        x, scale = x if x.stride(-1) == 1 else x.contiguous(), scale.contiguous()
        ctx.save_for_backward(x, cos, sin, scale)
        ctx.numbers = eps, interleaved
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        batch, time, heads, _ = x.shape
        launch = _launch(x, interleaved)
        with torch.cuda.device_of(x):
            _forward[(batch * time, triton.cdiv(heads, launch["tile"]))](
                x, cos, sin, scale, y, time, eps, *x.stride()[:3], *_angle_strides(x, cos), **launch
            )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        x, cos, sin, scale = ctx.saved_tensors
        eps, interleaved = ctx.numbers
        batch, time, heads, _ = x.shape
        launch, dy = _launch(x, interleaved), dy.contiguous()
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dscale = scale.new_empty((min(batch * time, _programs(x.device)), *scale.shape), dtype=torch.float32)
        with torch.cuda.device_of(x):
            _backward[(len(dscale), triton.cdiv(heads, launch["tile"]))](
                x, cos, sin, scale, dy, dx, dscale, batch * time, time, eps, *x.stride()[:3],
                *_angle_strides(x, cos), **launch,
            )  # fmt: skip
        return dx, None, None, dscale.sum(0).to(scale.dtype), None, None


def _launch(x: Tensor, interleaved: bool) -> dict[str, int]:
    heads, half = x.shape[2], x.shape[3] // 2
    block = triton.next_power_of_2(half)
    tile = min(triton.next_power_of_2(heads), max(1, PAIRS_PER_PROGRAM // block))
    return {"heads": heads, "half": half, "interleaved": interleaved, "tile": tile, "block": block, "num_warps": 4}


def _angle_strides(x: Tensor, cos: Tensor) -> tuple[int, int]:
    expanded = cos.expand(*x.shape[:2], 1, -1)
    return expanded.stride(0), expanded.stride(1)


def _programs(device: torch.device) -> int:
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    return PROGRAMS_PER_PROCESSOR * processors


def norm_rotary(
    x: Tensor, cos: Tensor, sin: Tensor, scale: Tensor, eps: float = 1e-24, interleaved: bool = False
) -> Tensor:
    """See `reference.norm_rotary`; angles in float32, `eager` takes float64."""
    same = cos.stride() == sin.stride() and cos.stride(-1) == 1
    if cos.dtype != torch.float32 or x.dtype == torch.float64 or not same or not x.numel():
        return eager(x, cos, sin, scale, eps, interleaved)
    return NormRotary.apply(x, cos, sin, scale, eps, interleaved)
