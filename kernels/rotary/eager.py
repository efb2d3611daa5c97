"""Rotary embedding with one tensor of memory where the plain formula makes six; formulas in `reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from nlrl.kernels.rotary.reference import pairs


def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """See `reference.rotary`."""
    return _Rotary.apply(x, cos, sin, interleaved)


class _Rotary(torch.autograd.Function):
    """Its backward is the turn by the opposite angle, so the input need not be kept."""

    @staticmethod
    def forward(ctx, x, cos, sin, interleaved):
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _turn(x, cos, sin, interleaved)

    @staticmethod
    def backward(ctx, grad):
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin, ctx.interleaved), None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    wide = x.to(cos.dtype)
    a, b = pairs(wide, interleaved)
    y = torch.empty_like(wide, memory_format=torch.contiguous_format)
    new_a, new_b = pairs(y, interleaved)
    torch.mul(a, cos, out=new_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=new_b).addcmul_(a, sin)
    return y.to(x.dtype)
