"""Attention of one new token a row over paged keys and values, in plain PyTorch.

    y[r, h] = sum over t <= p of softmax(scale * q[r, h] . k[r, t])[t] * v[r, t],      p = position of row r's new token

Token t of row r lies in page `table[r, t // 16]` at offset `t % 16`. Rows of unequal length share one pool of pages;
those with the same beginning share its pages (Kwon et al. 2023, arXiv 2309.06180).

A prefix that all rows share may stand before every row's tokens (Hymba's meta tokens, arXiv 2411.13676).

With n tokens in all, a fused kernel reads n (kv_heads key_dim + v_heads value_dim) numbers and little else: memory
decides its time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nlrl.kernels.rotary.reference import rotary

PAGE = 16
"""Tokens of a page."""


class HeadGroups(NamedTuple):
    """Which query heads read what: consecutive ones share a key head, consecutive key heads share a value head."""

    kv_heads: int
    """Key heads."""
    v_heads: int
    """Value heads."""
    query_heads: int
    """Of one key head."""
    key_heads: int
    """Of one value head."""

    @classmethod
    def of(cls, query: Tensor, keys: Tensor, values: Tensor) -> HeadGroups:
        """Raises: ValueError: a number of heads is no multiple of the next, or the pages are not of 16 tokens."""
        heads, kv_heads, v_heads = query.shape[1], keys.shape[1], values.shape[1]
        if heads % kv_heads or kv_heads % v_heads:
            raise ValueError(f"{heads} query heads, {kv_heads} key heads, {v_heads} value heads: not multiples")
        if keys.shape[2] != PAGE or values.shape[2] != PAGE or keys.shape[0] != values.shape[0]:
            raise ValueError(
                f"keys {tuple(keys.shape)}, values {tuple(values.shape)}: not equally many pages of {PAGE}"
            )
        return cls(kv_heads, v_heads, heads // kv_heads, kv_heads // v_heads)


def paged_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    positions: Tensor,
    scale: float | None = None,
    prefix_key: Tensor | None = None,
    prefix_value: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> Tensor:
    """Stores a new token's key and value in its page, then attends to every token up to it. No gradients.

    Query head h reads key head `h // (heads / kv_heads)`, key head k goes with value head `k // (kv_heads / v_heads)`,
    as in `scaled_dot_product_attention(..., enable_gqa=True)` of values repeated to kv_heads.

    Args:
        query: `(rows, heads, key_dim)`; heads is a multiple of kv_heads.
        key: `(rows, kv_heads, key_dim)`; kv_heads is a multiple of v_heads. None with value: both are stored already.
        value: `(rows, v_heads, value_dim)`.
        keys: `(pages, kv_heads, 16, key_dim)`, written in place. Its dtype is that of the dot products.
        values: `(pages, v_heads, 16, value_dim)`, likewise. Page 0 belongs to no row.
        table: `(rows, pages_per_row)` int64, page of every 16 tokens. What lies beyond a row's position is not used, so
            pages there may be any that exist. (Here they are read and thrown away: on a CPU, hand over the columns in
            use.)
        positions: `(rows,)` int64, of the new token, below 16 pages_per_row. -1: an idle row, which writes nothing but
            page 0. Its output means nothing; it is finite if its arguments and that page are.
        scale: of the scores; by default `key_dim ** -0.5`.
        prefix_key: `(kv_heads, prefix, key_dim)`, seen by every row, and prefix_value: `(v_heads, prefix, value_dim)`;
            or None.
        cos, sin: `(rows, 1, 1, key_dim / 2)`; given, query and key are turned by them first (`rotary`, pairs not
            interleaved).
    Returns: `(rows, heads, value_dim)`, dtype of query. Sums are in float32, or float64 if an argument is.

    Raises:
        ValueError: heads that are no multiples, pages not of 16 tokens.
    """
    groups = HeadGroups.of(query, keys, values)
    last = positions.clamp_min(0)
    query_ = turned(query, cos, sin).to(keys.dtype)
    if key is not None and value is not None:
        page = table.gather(1, (last // PAGE)[:, None])[:, 0].masked_fill(positions < 0, 0)
        keys[page, :, last % PAGE] = turned(key, cos, sin).to(keys.dtype)
        values[page, :, last % PAGE] = value.to(values.dtype)
    wide = torch.promote_types(keys.dtype, torch.float32)
    query_ = query_.to(wide).unflatten(1, (groups.kv_heads, -1))
    table = table.masked_fill(positions[:, None] < 0, 0)
    keys, values = _unpaged(keys, table).to(wide), _unpaged(values, table).to(wide)
    hidden = torch.arange(keys.shape[2], device=positions.device) > last[:, None]
    # Zero times what an earlier owner left in a page may be NaN.
    values.masked_fill_(hidden[:, None, :, None], 0)
    if prefix_key is not None and prefix_value is not None:
        keys, values = _behind(prefix_key, keys), _behind(prefix_value, values)
        hidden = F.pad(hidden, (prefix_key.shape[1], 0))
    scores = (query_ @ keys.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    weights = scores.masked_fill(hidden[:, None, None], -torch.inf).softmax(-1).flatten(1, 2)
    return (weights.unflatten(1, (groups.v_heads, -1)) @ values).flatten(1, 2).to(query.dtype)


def _unpaged(pool: Tensor, table: Tensor) -> Tensor:
    """`(rows, heads, 16 pages_per_row, dim)`, a copy."""
    rows, width = table.shape
    pages = pool.index_select(0, table.flatten()).unflatten(0, (rows, width))
    return pages.transpose(1, 2).flatten(2, 3)


def _behind(prefix: Tensor, own: Tensor) -> Tensor:
    """What all rows share before what each has, `(rows, heads, prefix + tokens, dim)`."""
    return torch.cat((prefix.to(own.dtype).expand(len(own), -1, -1, -1), own), 2)


def turned(x: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """`rotary` of one token's heads `(rows, heads, dim)`, or x where there are no angles."""
    return x if cos is None or sin is None else rotary(x[:, None], cos, sin)[:, 0]
