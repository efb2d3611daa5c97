"""Version 2 by PyTorch's fused attention over twice the heads; formulas in `reference`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nlrl.kernels.diff_attention_v2.reference import visible


def diff_attention_v2(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, starts: Tensor | None = None) -> Tensor:
    """See `reference.diff_attention_v2`."""
    mask = None if starts is None else visible(starts, query)
    q, k, v = (part.transpose(1, 2) for part in (query, key, value))
    grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}  # asked here: a compiler has symbols for sizes
    both = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, **grouped)
    first, second = both.transpose(1, 2).unflatten(2, (-1, 2)).unbind(3)
    return torch.addcmul(first, gate[..., None].to(first.dtype), second, value=-1)
