"""Attention over a ring without copying a key, neither to rows (the prefix) nor to a group's heads; formulas in
`reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from nlrl.kernels.paged_attention.reference import turned
from nlrl.kernels.ring_attention.reference import check_heads, store, visible


def ring_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    reach: int,
    writes: bool = True,
    prefix_key: Tensor | None = None,
    prefix_value: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> Tensor:
    """See `reference.ring_attention`; slots that nobody wrote must be finite."""
    check_heads(query, keys, values)
    q, k, v = turned(query, cos, sin).to(keys.dtype), turned(key, cos, sin).to(keys.dtype), value.to(values.dtype)
    q = q.unflatten(1, (keys.shape[1], -1)) * query.shape[-1] ** -0.5
    ring = torch.einsum("bkgd,bkmd->bkgm", q, keys)
    hidden = ~visible(positions, keys.shape[2], reach)[:, None, None]
    scores = [ring.masked_fill(hidden, -torch.inf), (q * k[:, :, None]).sum(-1, keepdim=True)]
    if prefix_key is not None:
        scores.append(torch.einsum("bkgd,kmd->bkgm", q, prefix_key.to(q.dtype)))
    joined = torch.cat(scores, -1)
    weights = joined.to(torch.promote_types(joined.dtype, torch.float32)).softmax(-1).to(q.dtype)
    old, own, *first = weights.split([part.shape[-1] for part in scores], -1)
    y = torch.einsum("bkgm,bkmd->bkgd", old, values) + own * v[:, :, None]
    if prefix_value is not None:
        y = y + torch.einsum("bkgm,kmd->bkgd", first[0], prefix_value.to(q.dtype))
    if writes:
        store(keys, k, positions)
        store(values, v, positions)
    return y.flatten(1, 2).to(query.dtype)
