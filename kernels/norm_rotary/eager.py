"""The chain of turn, norm and scale by calls that keep little; formulas in `reference`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nlrl.kernels.rotary.eager import rotary


def norm_rotary(
    x: Tensor, cos: Tensor, sin: Tensor, scale: Tensor, eps: float = 1e-24, interleaved: bool = False
) -> Tensor:
    """See `reference.norm_rotary`."""
    turned = F.rms_norm(rotary(x, cos, sin, interleaved), x.shape[-1:], eps=eps)
    return turned * scale.to(turned.dtype)
