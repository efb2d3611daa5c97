"""The residual step of nGPT in plain PyTorch (arXiv 2410.01131, equations 10 and 11).

    b = x / |x|        z = h + a * (b - h)        y = z / |z|

    ds = (dy - y (y . dy)) / |z|          gradient of z
    dh = (1 - a) * ds                     dx = (a * ds - b (b . a * ds)) / |x|
    da = sum over tokens of ds * (b - h)

With n tokens of width d in 2-byte storage a fused forward moves 6 n d bytes (reads h, x; writes y) and does about 9 n d FLOPs, a fused
backward 12 n d bytes (reads h, x, y, dy; writes dh, dx) and about 20 n d FLOPs: memory decides the time of both.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_SQUARE = 1e-24
"""Below this a vector counts as zero, and so does its unit vector: padding must not turn into NaN."""


def inverse_norm(x: Tensor) -> Tensor:
    """`1 / |x|` over the last axis, which is kept."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(SMALLEST_SQUARE**0.5).reciprocal_()


class UnitLerp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor, x: Tensor, a: Tensor) -> Tensor:
        wide = torch.promote_types(torch.promote_types(h.dtype, x.dtype), torch.float32)
        x_scale = inverse_norm(x.to(wide))
        z = torch.lerp(h.to(wide), x.to(wide) * x_scale, a.to(wide))
        z_scale = inverse_norm(z)
        y = z.mul_(z_scale).to(h.dtype)
        ctx.save_for_backward(h, x, a, y, x_scale, z_scale)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, x, a, y, x_scale, z_scale = ctx.saved_tensors
        wide = x_scale.dtype
        a_, y_, dy_ = a.to(wide), y.to(wide), dy.to(wide)
        b = x.to(wide) * x_scale
        dz = torch.addcmul(dy_, y_, (y_ * dy_).sum(-1, keepdim=True), value=-1).mul_(z_scale)
        db = dz * a_
        dh = (dz - db).to(h.dtype)
        da = dz.mul_(b - h.to(wide)).flatten(0, -2).sum(0).to(a.dtype)
        dx = db.addcmul_(b, (b * db).sum(-1, keepdim=True), value=-1).mul_(x_scale).to(x.dtype)
        return dh, dx, da


def unit_lerp(h: Tensor, x: Tensor, a: Tensor) -> Tensor:
    """Moves each unit vector h towards the direction of x and back onto the sphere.

    Args:
        h: `(..., width)`, unit vectors (others work, but then y is not what nGPT means).
        x: `(..., width)`, any length; only its direction counts.
        a: `(width,)`, share of the way in every coordinate.
    Returns: y, the shape and dtype of h. Sums are in float32, or float64 if an argument is.
    """
    return UnitLerp.apply(h, x, a)
