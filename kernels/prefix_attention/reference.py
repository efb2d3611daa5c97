"""Causal attention behind an always-visible prefix in plain PyTorch (arXiv 2411.13676, section 2.3, with its windows).

For every head, with d the width of a query, over the prefix's M keys and those of the call that a token sees:

    P = softmax(Q [K0; K]' / sqrt(d))         y = P [V0; V]

    D  = sum(dy y)        dP = dy [V0; V]'    dS = P (dP - D)
    dQ = dS [K0; K] / sqrt(d)                 d[K0; K] = dS' Q / sqrt(d)                d[V0; V] = P' dy

A token sees keys from the first it is told (`starts`) up to itself. That is a document's first token, or the first of a
window, whichever comes later: a window of W + 1 keys begins W tokens back. The prefix belongs to no row, so its
gradient is a sum over the batch.

Per pair of a query and a key it sees, and head, with e the width of a value: forward 2 (d + e) FLOPs and an
exponential, backward 4 d + 6 e at least (scores once more, dP, dV, dQ, dK). With w keys a token, products decide the
time from about a hundred on.
"""

from __future__ import annotations

import torch
from torch import Tensor


def prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor | None = None,
    prefix_value: Tensor | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    """
    Args:
        query: `(batch, time, heads, d)`.
        key: `(batch, time, kv_heads, d)`; heads is a multiple of kv_heads, and consecutive heads share one.
        value: `(batch, time, kv_heads, e)`.
        prefix_key, prefix_value: `(kv_heads, M, d)` and `(kv_heads, M, e)`; None: there is no prefix.
        starts: `(batch, time)` integers, the first token that each token sees; not falling along a row, and not behind
            the token itself. None: all up to itself.
    Returns: y, `(batch, time, heads, e)` in the dtype of query. Sums are in float32, or float64 for that dtype.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (part.to(wide).transpose(1, 2) for part in (query, key, value))
    hidden = ~visible(starts, query)
    if prefix_key is not None and prefix_value is not None:
        k, v = joined(prefix_key.to(wide), k), joined(prefix_value.to(wide), v)
        hidden = torch.nn.functional.pad(hidden, (prefix_key.shape[1], 0), value=False)
    scores = q.unflatten(1, (k.shape[1], -1)) @ k[:, :, None].transpose(-1, -2) * q.shape[-1] ** -0.5
    y = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1) @ v[:, :, None]
    return y.flatten(1, 2).transpose(1, 2).to(query.dtype)


def visible(starts: Tensor | None, query: Tensor) -> Tensor:
    """Which of the call's keys (columns) a token (row) sees: bool `(batch or 1, 1, time, time)`."""
    token = torch.arange(query.shape[1], device=query.device)
    causal = (token <= token[:, None])[None]
    return (causal if starts is None else causal & (token >= starts[..., None]))[:, None]


def joined(prefix: Tensor, own: Tensor) -> Tensor:
    """A prefix `(kv_heads, M, width)` before every row's own `(batch, kv_heads, time, width)`."""
    return torch.cat((prefix.expand(len(own), -1, -1, -1), own), 2)
