"""Rotary embedding for CUDA: a program turns some heads of one token, so that cos and sin are read once for all."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nlrl.kernels.rotary.eager import rotary as eager

PAIRS_PER_PROGRAM = 1024


@triton.jit(do_not_specialize=["time"])
def _rotate(
    x_ptr, cos_ptr, sin_ptr, y_ptr, time, x_row, x_token, x_head, angle_row, angle_token,
    heads: tl.constexpr, half: tl.constexpr, backward: tl.constexpr, interleaved: tl.constexpr,
    tile: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    row, at_time = token // time, token % time
    head, pair = tl.program_id(1) * tile + tl.arange(0, tile), tl.arange(0, block)
    inside = (head < heads)[:, None] & (pair < half)[None, :]
    angle = row * angle_row + at_time * angle_token + pair
    cos = tl.load(cos_ptr + angle, mask=pair < half, other=0.0)[None, :]
    sin = tl.load(sin_ptr + angle, mask=pair < half, other=0.0)[None, :]
    if backward:
        sin = -sin
    if interleaved:
        first, apart = 2 * pair, 1
    else:
        first, apart = pair, half
    x_at = x_ptr + row * x_row + at_time * x_token + head[:, None] * x_head + first[None, :]
    a = tl.load(x_at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x_at + apart, mask=inside, other=0.0).to(tl.float32)
    y_at = y_ptr + (token * heads + head[:, None]) * (2 * half) + first[None, :]
    tl.store(y_at, (a * cos - b * sin).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(y_at + apart, (b * cos + a * sin).to(y_ptr.dtype.element_ty), mask=inside)


class Rotary(torch.autograd.Function):
    """Its backward is the turn by the opposite angle, so the input need not be kept."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _turned(x, cos, sin, interleaved, backward=False)

    @staticmethod
    def backward(ctx, dy: Tensor):
        return _turned(dy, *ctx.saved_tensors, ctx.interleaved, backward=True), None, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, backward: bool) -> Tensor:
    batch, time, heads, head_dim = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return y
    x = x if x.stride(-1) == 1 else x.contiguous()
    cos, sin = (angle.expand(batch, time, 1, -1) for angle in (cos, sin))
    block = triton.next_power_of_2(head_dim // 2)
    tile = min(triton.next_power_of_2(heads), max(1, PAIRS_PER_PROGRAM // block))
    with torch.cuda.device_of(x):
        _rotate[(batch * time, triton.cdiv(heads, tile))](
            x, cos, sin, y, time, *x.stride()[:3], *cos.stride()[:2], heads=heads, half=head_dim // 2,
            backward=backward, interleaved=interleaved, tile=tile, block=block, num_warps=4,
        )  # fmt: skip
    return y


def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """See `reference.rotary`; angles in float32, `eager` takes float64 ones."""
    same = cos.stride() == sin.stride() and cos.stride(-1) == 1
    if cos.dtype != torch.float32 or x.dtype == torch.float64 or not same:
        return eager(x, cos, sin, interleaved)
    return Rotary.apply(x, cos, sin, interleaved)
