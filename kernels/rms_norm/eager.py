"""RMSNorm by PyTorch's own; formulas in `reference`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, residual: Tensor | None = None):
    """See `reference.rms_norm`."""
    s = x if residual is None else x + residual
    y = F.rms_norm(s, weight.shape, weight.to(s.dtype), eps)
    return y if residual is None else (y, s)
