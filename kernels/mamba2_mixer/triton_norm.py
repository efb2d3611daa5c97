"""The norm of a gated output for CUDA; the formula is `reference.rms_norm_of_gated`.

With g = y silu(z), s = 1 / rms(g) and n = s g, of a part of width m:  dg = s (w dout - n sum(w dout n) / m).

Forwards a program does one part of one token, which is read and written once. Backwards it does many tokens, adding up
the gradient of the weight as it goes; the programs' sums are added in a fixed order, so equal inputs give equal bits.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

PROGRAMS_BACKWARDS = 528
"""At most: four for each of 132 processors."""
VALUES_PER_WARP, VALUES_PER_WARP_BACKWARDS = 1024, 512
MOST_WARPS = 16


@triton.jit
def _gated(y_ptr, z_ptr, token, z_row, width, first, i, inside):
    y = tl.load(y_ptr + token * width + first + i, mask=inside, other=0.0).to(tl.float32)
    z = tl.load(z_ptr + token * z_row + first + i, mask=inside, other=0.0).to(tl.float32)
    return y, z, 1.0 / (1.0 + tl.exp2(z * -1.4426950408889634))


@triton.jit
def _forward(
    y_ptr, z_ptr, weight_ptr, out_ptr, z_row, width, part, eps, groups: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    token, first = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups * part
    i = tl.arange(0, block)
    y, z, share = _gated(y_ptr, z_ptr, token, z_row, width, first, i, i < part)
    g = y * z * share
    g *= tl.rsqrt(tl.sum(g * g, 0) / part + eps)
    weight = tl.load(weight_ptr + first + i, mask=i < part, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * width + first + i, (g * weight).to(out_ptr.dtype.element_ty), mask=i < part)


@triton.jit(do_not_specialize=["tokens"])
def _backward(
    y_ptr, z_ptr, weight_ptr, dout_ptr, dy_ptr, dz_ptr, dweight_ptr, tokens, z_row, width, part, eps,
    block: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(1) * part
    i = tl.arange(0, block)
    inside = i < part
    weight = tl.load(weight_ptr + first + i, mask=inside, other=0.0).to(tl.float32)
    dweight = tl.zeros((block,), tl.float32)
    for t in range(tl.program_id(0), tokens, tl.num_programs(0)):
        token = tl.cast(t, tl.int64)
        y, z, share = _gated(y_ptr, z_ptr, token, z_row, width, first, i, inside)
        dout = tl.load(dout_ptr + token * width + first + i, mask=inside, other=0.0).to(tl.float32)
        gate = z * share
        scale = tl.rsqrt(tl.sum(y * gate * y * gate, 0) / part + eps)
        normed = y * gate * scale
        dweight += dout * normed
        dout *= weight
        dg = scale * (dout - normed * (tl.sum(dout * normed, 0) / part))
        at = token * width + first + i
        tl.store(dy_ptr + at, (dg * gate).to(dy_ptr.dtype.element_ty), mask=inside)
        dz = dg * y * share * (1.0 + z * (1.0 - share))
        tl.store(dz_ptr + at, dz.to(dz_ptr.dtype.element_ty), mask=inside)
    tl.store(dweight_ptr + tl.program_id(0) * width + first + i, dweight, mask=inside)


def _launch(width: int, groups: int, per_warp: int) -> dict[str, int]:
    block = triton.next_power_of_2(width // groups)
    return {"block": block, "num_warps": max(1, min(MOST_WARPS, block // per_warp))}


class RMSNormOfGated(torch.autograd.Function):
    """y: `(tokens, width)` contiguous; z: as much, rows at even distances; weight contiguous."""

    @staticmethod
    def forward(ctx, y: Tensor, z: Tensor, weight: Tensor, eps: float, groups: int) -> Tensor:
        (tokens, width), out = y.shape, torch.empty(y.shape, dtype=weight.dtype, device=y.device)
        with torch.cuda.device_of(y):
            _forward[(tokens * groups,)](
                y, z, weight, out, z.stride(0), width, width // groups, eps, groups=groups,
                **_launch(width, groups, VALUES_PER_WARP),
            )  # fmt: skip
        ctx.save_for_backward(y, z, weight)
        ctx.eps, ctx.groups = eps, groups
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        y, z, weight = ctx.saved_tensors
        (tokens, width), groups = y.shape, ctx.groups
        dy, dz = torch.empty_like(y), torch.empty(z.shape, dtype=z.dtype, device=z.device)
        programs = min(tokens, triton.cdiv(PROGRAMS_BACKWARDS, groups))
        dweight = torch.empty((programs, width), dtype=torch.float32, device=y.device)
        with torch.cuda.device_of(y):
            _backward[(programs, groups)](
                y, z, weight, dout.contiguous(), dy, dz, dweight, tokens, z.stride(0), width, width // groups, ctx.eps,
                **_launch(width, groups, VALUES_PER_WARP_BACKWARDS),
            )  # fmt: skip
        return dy, dz, dweight.sum(0).to(weight.dtype), None, None


def rms_norm_of_gated(y: Tensor, z: Tensor, weight: Tensor, eps: float, groups: int) -> Tensor:
    """See `reference.rms_norm_of_gated`; y and z: `(batch, time, width)`."""
    if not y.numel():
        return y.to(weight.dtype)
    rows = z.reshape(-1, z.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    out = RMSNormOfGated.apply(y.reshape(rows.shape).contiguous(), rows, weight.contiguous(), eps, groups)
    return out.view(y.shape)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
