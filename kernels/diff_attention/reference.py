"""Differential attention in plain PyTorch (arXiv 2410.05258, equations 1 to 3).

For every head, with d the width of a query and keys masked as the tokens say:

    P1 = softmax(Q1 K1' / sqrt(d))        P2 = softmax(Q2 K2' / sqrt(d))        O2 = P2 V
    O  = (P1 - lambda P2) V               n = O rsqrt(mean(O^2) + eps)          y = s w n

The derivative, with dy given (means and sums over the 2 d channels of a head):

    g   = s w dy                          dO  = rsqrt(mean(O^2) + eps) (g - n mean(g n))
    d2  = sum(dO O2)                      d1  = sum(dO O) + lambda d2
    dP  = dO V'                           dS1 = P1 (dP - d1)            dS2 = -lambda P2 (dP - d2)
    dQi = dSi Ki / sqrt(d)                dKi = dSi' Qi / sqrt(d)       dV = (P1 - lambda P2)' dO
    dlambda = -sum over tokens and heads of d2                          dw = sum over tokens and heads of s dy n

dP and dV are one product each for both maps. Per pair of query and key, and head, forward is 12 d FLOPs (4 d for both
scores, 8 d for both reads of V) and 2 exponentials; backward is 20 d at least: 4 d for the scores once more, and 4 d
each for dP, dV, dQ and dK. With n tokens, h heads, as many key heads and 2-byte storage forward moves 16 n h d bytes
(reads Q, K and V, writes y), and 8 n h d more for O and O2 where there is a backward pass. From about a thousand tokens
on products decide the time, not memory.
"""

from __future__ import annotations

import torch
from torch import Tensor


def diff_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lambda_: Tensor,
    weight: Tensor,
    output_scale: float = 1.0,
    eps: float = 1e-5,
    starts: Tensor | None = None,
) -> Tensor:
    """Causal differential attention with the norm of its heads.

    Args:
        query: `(batch, time, 2 heads, d)`; 2i and 2i + 1 are the two maps of head i.
        key: `(batch, time, 2 kv_heads, d)`, paired in the same way; heads is a multiple of kv_heads, and consecutive
            heads share a pair.
        value: `(batch, time, kv_heads, 2 d)`.
        lambda_: `()`, how much of the second map is subtracted.
        weight: `(2 d,)`, of the norm, for all heads.
        output_scale: s; 1 - lambda_init.
        eps: of the norm.
        starts: `(batch, time)` integers, the first token of each token's document; not falling along a row, and not
            behind the token itself. None: one document a row.
    Returns: y, `(batch, time, heads, 2 d)` in the dtype of query. Sums are in float32, or float64 if an argument is.
    """
    wide = torch.promote_types(torch.promote_types(query.dtype, lambda_.dtype), torch.float32)
    q, k, v = (part.to(wide).transpose(1, 2) for part in (query, key, value))
    q, k = q.unflatten(1, (v.shape[1], -1, 2)), k.unflatten(1, (-1, 1, 2))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    maps = scores.masked_fill(~visible(starts, query)[:, None, None], -torch.inf).softmax(-1)
    y = (maps[:, :, :, 0] - lambda_ * maps[:, :, :, 1]) @ v[:, :, None]
    y = y * (y.square().mean(-1, keepdim=True) + eps).rsqrt() * (weight.to(wide) * output_scale)
    return y.flatten(1, 2).transpose(1, 2).to(query.dtype)


def visible(starts: Tensor | None, query: Tensor) -> Tensor:
    """Which keys (columns) a token (row) sees: bool `(batch or 1, 1, time, time)`."""
    token = torch.arange(query.shape[1], device=query.device)
    causal = (token <= token[:, None])[None]
    return (causal if starts is None else causal & (token >= starts[..., None]))[:, None]
