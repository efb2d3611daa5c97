"""Attention of one new token a row over a ring of the last tokens, in plain PyTorch.

    y[r, h] = sum over what it sees of softmax(q[r, h] . k / sqrt(key_dim)) v

Position p of a row lives in slot p mod n of its ring. The token at position p sees a prefix that all rows share (meta
tokens, arXiv 2411.13676, section 2.3), of the n positions before p those at most `reach` away, and itself.

A row whose ring is full moves n kv_heads (key_dim + value_dim) numbers, the prefix once for all rows: memory decides
the time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nlrl.kernels.paged_attention.reference import turned


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
    """Attends, then puts the new key and value into their slot, in place of the oldest. No gradients.

    Query head h reads head `h // (heads / kv_heads)` of keys and values.

    Args:
        query: `(rows, heads, key_dim)`; heads is a multiple of kv_heads.
        key: `(rows, kv_heads, key_dim)`, of the new token, and value: `(rows, kv_heads, value_dim)`.
        keys: `(rows, kv_heads, slots, key_dim)`, the ring, and values: `(rows, kv_heads, slots, value_dim)`. Their
            dtype is that of the dot products.
        positions: `(rows,)` int64, of the new token. -1: an idle row, whose ring stays, and whose output is finite.
        reach: how far before itself a token sees; no more than `slots` in any case.
        writes: False where another layer reads the ring afterwards.
        prefix_key: `(kv_heads, prefix, key_dim)`, seen by every row, and prefix_value: `(kv_heads, prefix,
            value_dim)`; or None.
        cos, sin: `(rows, 1, 1, key_dim / 2)`; given, query and key are turned by them first (`rotary`, pairs not
            interleaved).
    Returns: `(rows, heads, value_dim)`, dtype of query. Sums are in float32, or float64 if keys are.

    Raises:
        ValueError: heads is no multiple of kv_heads.
    """
    rows, kv_heads, slots = keys.shape[:3]
    check_heads(query, keys, values)
    query_, key_ = turned(query, cos, sin).to(keys.dtype), turned(key, cos, sin).to(keys.dtype)
    value_ = value.to(values.dtype)
    wide = torch.promote_types(keys.dtype, torch.float32)
    seen = torch.cat((visible(positions, slots, reach), torch.ones_like(positions, dtype=torch.bool)[:, None]), 1)
    all_keys, all_values = torch.cat((keys, key_[:, :, None]), 2), torch.cat((values, value_[:, :, None]), 2)
    # Zero times what an earlier owner left in a slot may be NaN.
    all_keys, all_values = (part.masked_fill(~seen[:, None, :, None], 0) for part in (all_keys, all_values))
    if prefix_key is not None and prefix_value is not None:
        first = [part.to(keys.dtype).expand(rows, -1, -1, -1) for part in (prefix_key, prefix_value)]
        all_keys, all_values = torch.cat((first[0], all_keys), 2), torch.cat((first[1], all_values), 2)
        seen = torch.cat((seen.new_ones(rows, prefix_key.shape[1]), seen), 1)
    grouped = query_.to(wide).unflatten(1, (kv_heads, -1))
    scores = grouped @ all_keys.to(wide).transpose(2, 3) * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
    y = (weights @ all_values.to(wide)).flatten(1, 2).to(query.dtype)
    if writes:
        store(keys, key_, positions)
        store(values, value_, positions)
    return y


def check_heads(query: Tensor, keys: Tensor, values: Tensor) -> None:
    """Raises: ValueError: as `ring_attention`."""
    if query.shape[1] % keys.shape[1] or keys.shape[:3] != values.shape[:3]:
        raise ValueError(
            f"{query.shape[1]} query heads, keys {tuple(keys.shape)}, values {tuple(values.shape)}: heads are not "
            "multiples, or rings not equally long"
        )


def visible(positions: Tensor, slots: int, reach: int) -> Tensor:
    """Which slots the token at each position sees, bool `(rows, slots)`."""
    slot = torch.arange(slots, device=positions.device)
    distance = (positions[:, None] - 1 - slot) % slots + 1
    return distance <= positions.clamp_max(reach)[:, None]


def store(ring: Tensor, new: Tensor, positions: Tensor) -> None:
    """Puts `(rows, kv_heads, width)` into the slots of their positions, in place; idle rows stay."""
    rows, slot = torch.arange(len(new), device=new.device), positions % ring.shape[2]
    ring[rows, :, slot] = torch.where((positions >= 0)[:, None, None], new, ring[rows, :, slot])
