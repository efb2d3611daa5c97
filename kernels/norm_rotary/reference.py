"""Turning a head's pairs of channels, making all heads equally long, and scaling their channels, in plain PyTorch
(arXiv 2410.01131, section 2.3.2; the length is the root of the width, not 1).

    t = rotary(x)        r = (mean(t^2) + eps)^(-1/2)        y = c t r

A turn changes no length, so with n = x r (of the same r) y is c rotary(n), and backwards, with g = rotary^-1(c dy):

    dx = r (g - n mean(g n))        dc = sum over tokens of dy rotary(n)

With n heads of d channels in 2-byte storage a fused forward moves 4 n d bytes a token, a fused backward 6 n d; the
plain chain moves 12 n d forward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nlrl.kernels.rotary.reference import rotary


def norm_rotary(
    x: Tensor, cos: Tensor, sin: Tensor, scale: Tensor, eps: float = 1e-24, interleaved: bool = False
) -> Tensor:
    """
    Args:
        x: `(batch, time, heads, head_dim)`.
        cos, sin, interleaved: as in `rotary`.
        scale: c, `(heads, head_dim)`.
        eps: added to a mean square, so that a zero vector does not become NaN.
    Returns: as x.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    t = rotary(x.to(wide), cos, sin, interleaved)
    return (t * (t.square().mean(-1, keepdim=True) + eps).rsqrt() * scale.to(wide)).to(x.dtype)
