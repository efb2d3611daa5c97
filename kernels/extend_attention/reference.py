"""Attention of several new tokens a row over older text and over each other, in plain PyTorch.

    y[r, i, h] = sum over t of softmax(q[r, i, h] . k[r, t] / sqrt(d))[t] v[r, t]

The new token at position p sees a prefix that all rows share, and the row's tokens at positions t <= p, of which those
with p - t <= reach where there is a reach. Tokens before `start` are the older text, which lies in pages (Kwon et al.
2023, arXiv 2309.06180) or in a ring, where position t has slot t mod slots (windows of arXiv 2411.13676); the others
came with the call. So a prompt goes on from what another one has left (RadixAttention's `extend`, arXiv 2312.07104).

Nothing is stored: whoever calls puts new keys and values where they belong, into pages before or after the call, into a
ring after it, as they replace what the first of the new tokens still see.

A fused kernel reads queries, keys and values once and writes y; each pair of a token and one it sees takes 2 (d + e)
FLOPs and an exponential a head. From some dozens of new tokens a row on, products decide the time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nlrl.kernels.paged_attention.reference import PAGE


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
    """No gradients. Query head h reads key head `h // (heads / kv_heads)`, key head k goes with value head
    `k // (kv_heads / v_heads)`.

    Args:
        query: `(batch, time, heads, d)`; heads is a multiple of kv_heads.
        key: `(batch, time, kv_heads, d)`, of the new tokens; kv_heads is a multiple of v_heads.
        value: `(batch, time, v_heads, e)`.
        keys: of older text, `(pages, kv_heads, 16, d)` with a table, else a ring `(batch, kv_heads, slots, d)`. Its
            dtype is that of the dot products.
        values: `(pages, v_heads, 16, e)` or `(batch, v_heads, slots, e)`.
        positions: `(batch, time)` int64, rising by one over a row's tokens; -1 at padding, which may stand before and
            behind them, and for which y is 0.
        start: `(batch,)` int64, the position of a row's first new token: it has so many older ones. A ring holds as
            many of the last of them as it has slots. Of a row without new tokens any.
        table: `(batch, pages of a row)` int64, as in `paged_attention`; what lies behind the older text is not used.
        reach: how far before itself a token sees. None: everything that is there.
        prefix_key, prefix_value: `(kv_heads, M, d)` and `(v_heads, M, e)`, seen by every token; None: no prefix.
    Returns: y, `(batch, time, heads, e)` in the dtype of query. Sums are in float32, or float64 if keys are.

    Raises:
        ValueError: heads that are no multiples, pages not of 16 tokens.
    """
    check(query, key, value, keys, values, table)
    wide = torch.promote_types(keys.dtype, torch.float32)
    seen = visible(positions, start, keys, table, reach)
    q, k, v = (part.to(keys.dtype).to(wide).transpose(1, 2) for part in (query, key, value))
    k, v = (torch.cat((older(old, table).to(wide), new), 2) for old, new in ((keys, k), (values, v)))
    unseen = ~seen.any(1)[:, None, :, None]
    k, v = k.masked_fill(unseen, 0), v.masked_fill(unseen, 0)  # zero times what an earlier owner left may be NaN
    if prefix_key is not None and prefix_value is not None:
        k, v = (torch.cat((first.to(wide).expand(len(q), -1, -1, -1), own), 2)
                for first, own in ((prefix_key, k), (prefix_value, v)))  # fmt: skip
        seen = torch.nn.functional.pad(seen, (prefix_key.shape[1], 0), value=True)
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
    scores = q @ k.transpose(2, 3) * query.shape[-1] ** -0.5
    y = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1) @ v
    return y.transpose(1, 2).masked_fill((positions < 0)[..., None, None], 0).to(query.dtype)


def check(query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, table: Tensor | None) -> None:
    """Raises: ValueError: as `extend_attention`."""
    heads, kv_heads, v_heads = query.shape[2], key.shape[2], value.shape[2]
    if heads % kv_heads or kv_heads % v_heads:
        raise ValueError(f"{heads} query heads, {kv_heads} key heads, {v_heads} value heads: not multiples")
    if (keys.shape[1], values.shape[1]) != (kv_heads, v_heads) or keys.shape[2] != values.shape[2]:
        raise ValueError(f"keys {tuple(keys.shape)}, values {tuple(values.shape)}: not of {kv_heads}, {v_heads} heads")
    if table is not None and keys.shape[2] != PAGE:
        raise ValueError(f"pages of {keys.shape[2]} tokens, not {PAGE}")


def visible(positions: Tensor, start: Tensor, keys: Tensor, table: Tensor | None, reach: int | None) -> Tensor:
    """Which older tokens, in the order in which they lie, and which new ones each token sees: bool `(batch, time, older
    + time)`; nothing for padding."""
    slots = keys.shape[2] if table is None else PAGE * table.shape[1]
    slot, last = torch.arange(slots, device=positions.device), start[:, None] - 1
    held = last - (last - slot) % slots if table is None else slot.expand(len(start), -1)
    older_ones = torch.where(held <= last, held, -1)
    at = torch.cat((older_ones, positions), 1)[:, None]
    seen = (at >= 0) & (at <= positions[..., None])
    return seen if reach is None else seen & (positions[..., None] - at <= reach)


def older(held: Tensor, table: Tensor | None) -> Tensor:
    """What rows hold, `(batch, heads, slots, width)`: a ring as it is, pages in a copy."""
    if table is None:
        return held
    return held[table].transpose(1, 2).flatten(2, 3)
