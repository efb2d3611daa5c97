"""Older and new text in one piece under a mask; formulas in `reference`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nlrl.kernels.extend_attention.reference import check, older, visible
from nlrl.kernels.prefix_attention.eager import masked_attention
from nlrl.kernels.prefix_attention.reference import joined


def extend_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    start: Tensor,
    table: Tensor | None = None,
    reach: int | None = None,
    prefix_key: Tensor | None = None,
    prefix_value: Tensor | None = None,
) -> Tensor:
    """See `reference.extend_attention`; slots that nobody wrote, and padding, must be finite."""
    check(query, key, value, keys, values, table)
    q, k, v = (part.to(keys.dtype).transpose(1, 2) for part in (query, key, value))
    padding = positions < 0
    mask = (visible(positions, start, keys, table, reach) | padding[..., None])[:, None]
    k, v = torch.cat((older(keys, table), k), 2), torch.cat((older(values, table), v), 2)
    if prefix_key is not None and prefix_value is not None:
        k, v = joined(prefix_key.to(k.dtype), k), joined(prefix_value.to(v.dtype), v)
        mask = F.pad(mask, (prefix_key.shape[1], 0), value=True)
    v = v.repeat_interleave(k.shape[1] // v.shape[1], 1)
    y = masked_attention(q, k, v, mask).transpose(1, 2)
    return y.masked_fill(padding[..., None, None], 0).to(query.dtype)
