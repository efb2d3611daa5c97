"""Differential attention, version 2, in plain PyTorch (unilm, Diff-Transformer-V2: `multihead_flashdiffv2.py`).

For every head, with d the width of a query, both of its queries over the same keys and values, and a gate a token:

    P1 = softmax(Q1 K' / sqrt(d))        P2 = softmax(Q2 K' / sqrt(d))        O2 = P2 V        y = P1 V - g O2

The derivative, with dy given (sums over the d channels of a head):

    dP  = dy V'          e2  = sum(dy O2)             d1  = sum(dy y) + g e2        dg = -e2
    dS1 = P1 (dP - d1)   dS2 = -g P2 (dP - e2)        dV  = (P1 - g P2)' dy
    dQi = dSi K / sqrt(d)                             dK  = (dS1' Q1 + dS2' Q2) / sqrt(d)

dP and dV are one product each for both maps, where attention over twice the heads makes two. Per pair of query and key,
and head, forward is 8 d FLOPs and 2 exponentials; backward 16 d at least.
"""

from __future__ import annotations

import torch
from torch import Tensor


def diff_attention_v2(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, starts: Tensor | None = None) -> Tensor:
    """
    Args:
        query: `(batch, time, 2 heads, d)`; 2i and 2i + 1 are the two maps of head i.
        key, value: `(batch, time, kv_heads, d)`; heads is a multiple of kv_heads, and consecutive heads share one.
        gate: `(batch, time, heads)`, how much of the second map is subtracted.
        starts: `(batch, time)` integers, the first token of each token's document; not falling along a row, and not
            behind the token itself. None: one document a row.
    Returns: y, `(batch, time, heads, d)` in the dtype of query. Sums are in float32, or float64 for that dtype.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (part.to(wide).transpose(1, 2) for part in (query, key, value))
    scores = q.unflatten(1, (k.shape[1], -1)) @ k[:, :, None].transpose(-1, -2) * q.shape[-1] ** -0.5
    maps = scores.masked_fill(~visible(starts, query)[:, None], -torch.inf).softmax(-1)
    first, second = (maps @ v[:, :, None]).flatten(1, 2).unflatten(1, (-1, 2)).unbind(2)
    y = first.transpose(1, 2) - gate.to(wide)[..., None] * second.transpose(1, 2)
    return y.to(query.dtype)


def visible(starts: Tensor | None, query: Tensor) -> Tensor:
    """Which keys (columns) a token (row) sees: bool `(batch or 1, 1, time, time)`."""
    token = torch.arange(query.shape[1], device=query.device)
    causal = (token <= token[:, None])[None]
    return (causal if starts is None else causal & (token >= starts[..., None]))[:, None]
