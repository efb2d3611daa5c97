"""The residual step of nGPT with few passes over memory; formulas in `reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from nlrl.kernels.unit_lerp.reference import SMALLEST_NORM


def unit_lerp(h: Tensor, x: Tensor, a: Tensor) -> Tensor:
    """See `reference.unit_lerp`."""
    return _UnitLerp.apply(h, x, a)


class _UnitLerp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor, x: Tensor, a: Tensor) -> Tensor:
        wide = torch.promote_types(torch.promote_types(h.dtype, x.dtype), torch.float32)
        x_scale = _inverse_norm(x.to(wide))
        z = torch.lerp(h.to(wide), x.to(wide) * x_scale, a.to(wide))
        z_scale = _inverse_norm(z)
        y = z.mul_(z_scale).to(h.dtype)
        ctx.save_for_backward(h, x, a, y, x_scale, z_scale)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, x, a, y, x_scale, z_scale = ctx.saved_tensors
        wide = x_scale.dtype
        y_, dy_ = y.to(wide), dy.to(wide)
        b = x.to(wide) * x_scale
        dz = torch.addcmul(dy_, y_, (y_ * dy_).sum(-1, keepdim=True), value=-1).mul_(z_scale)
        db = dz * a.to(wide)
        dh = (dz - db).to(h.dtype)
        da = dz.mul_(b - h.to(wide)).flatten(0, -2).sum(0).to(a.dtype)
        dx = db.addcmul_(b, (b * db).sum(-1, keepdim=True), value=-1).mul_(x_scale).to(x.dtype)
        return dh, dx, da


def _inverse_norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(SMALLEST_NORM).reciprocal_()
