"""RMSNorm in plain PyTorch (arXiv 1910.07467), with the step of a residual stream before it if there is one.

    s = x + r        r^ = (mean(s^2) + eps)^(-1/2)        n = s r^        y = w n

    dn = w dy        ds = r^ (dn - n mean(dn n)) + what comes from s itself        dw = sum over rows of dy n

With n rows of d channels in 2-byte storage a fused forward moves 4 n d bytes, 8 n d with a residual; backward reads s
and dy (and ds), writes one gradient: 6 n d, or 8 n d.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, residual: Tensor | None = None):
    """
    Args:
        x, residual: `(..., width)`.
        weight: `(width,)`.
    Returns: y like x; with a residual y and s = x + residual. Sums are in float32 at least.
    """
    s = x if residual is None else x + residual
    wide = s.to(torch.promote_types(s.dtype, torch.float32))
    n = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    y = (n * weight.to(n.dtype)).to(s.dtype)
    return y if residual is None else (y, s)
