"""The residual step of nGPT in plain PyTorch (arXiv 2410.01131, equations 10 and 11).

    b = x / |x|        z = h + a * (b - h)        y = z / |z|

    dz = (dy - y (y . dy)) / |z|
    dh = (1 - a) * dz                     dx = (a * dz - b (b . a * dz)) / |x|
    da = sum over tokens of dz * (b - h)

With n tokens of width d in 2-byte storage a fused forward moves 6 n d bytes (reads h, x; writes y) and does about
9 n d FLOPs, a fused backward 12 n d bytes (reads h, x, y, dy; writes dh, dx) and about 20 n d FLOPs: memory decides the
time of both.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_NORM = 1e-12
"""A shorter vector counts as this long: padding must not turn into NaN."""


def unit_lerp(h: Tensor, x: Tensor, a: Tensor) -> Tensor:
    """Moves each unit vector h towards the direction of x and back onto the sphere.

    Args:
        h: `(..., width)`, unit vectors (others work, but then y is not what nGPT means).
        x: `(..., width)`, any length; only its direction counts.
        a: `(width,)`, share of the way in every coordinate.
    Returns: y, the shape and dtype of h. Sums are in float32, or float64 if an argument is.
    """
    wide = torch.promote_types(torch.promote_types(h.dtype, x.dtype), torch.float32)
    start = h.to(wide)
    return _unit(start + a * (_unit(x.to(wide)) - start)).to(h.dtype)


def _unit(x: Tensor) -> Tensor:
    return x * x.square().sum(-1, keepdim=True).clamp_min(SMALLEST_NORM**2).rsqrt()
