"""Grouped-query attention over what a call brings and what the cache holds."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nlrl import kernels
from nlrl.backbones.kv_cache import GrowingCache, KVCache, PagedKVCache
from nlrl.backbones.rotary import angles


class Context(NamedTuple):
    """What every layer of one call needs beside the hidden states; made once a call by `context`."""

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    """bool `(batch, 1, time, keys)`, True = may attend. None: causal, or there is a `goes_on`."""
    state: KVCache | GrowingCache | None
    where: tuple[Tensor, Tensor] | None
    """Where the state keeps every new token."""
    positions: Tensor
    starts: Tensor | None = None
    """`(batch, time)`, the first token that each token sees, where a mask was and it sees all from there on
    (`first_visible`); for kernels that skip other documents instead of masking them."""
    goes_on: Tensor | None = None
    """`(batch,)`, the position each row goes on from, where a kernel reads the older text (`extends`)."""


def context(position_ids: Tensor, turns: Tensor, mask=None, state=None) -> Context:
    """Args: position_ids `(batch, time)`; turns: `rotary.frequencies`; mask, state as in `Backbone.hidden`.

    Raises:
        ValueError: both a mask and a state of static shape.
    """
    where, goes_on = None, None
    if isinstance(state, KVCache):
        if mask is not None:
            raise ValueError("a KVCache takes no mask: positions say what a token may attend to")
        if extends(position_ids, state):
            goes_on = first_position(position_ids)
        elif not _begins(state):
            mask = visible_slots(position_ids, state.length)
        where = state.where(position_ids)
    return Context(*angles(position_ids, turns), mask, state, where, position_ids, None, goes_on)


def first_visible(mask: Tensor) -> Tensor:
    """The first key of every query that it sees, `(batch, time)` int32; never falling along a row.

    Args: mask: as in `Context`, of documents that lie one behind the other: each query sees all keys between.
    """
    first = mask[:, 0].to(torch.uint8).argmax(-1)
    return first.cummax(1).values.int()


def first_position(position_ids: Tensor) -> Tensor:
    """Of each row's tokens, `(batch,)`; where there is only padding, some number above all positions."""
    return position_ids.masked_fill(position_ids < 0, torch.iinfo(torch.int32).max).amin(1)


def _begins(state: KVCache) -> bool:
    return isinstance(state, PagedKVCache) and state.fresh


def visible_slots(position_ids: Tensor, length: int) -> Tensor:
    """Slots up to a token's own, bool `(batch, 1, time, length)`. Padding (position -1) sees slot 0: a softmax over
    nothing would be NaN, and stored NaNs spread."""
    slots = torch.arange(length, device=position_ids.device)
    return (slots <= position_ids.clamp_min(0)[..., None])[:, None]


def attend(query: Tensor, key: Tensor, value: Tensor, layer: int, context: Context) -> Tensor:
    """Attention of one layer.

    Args:
        query: `(batch, time, heads, head_dim)`.
        key, value: `(batch, time, kv_heads, head_dim)`; heads is a multiple of kv_heads.
    Returns: `(batch, time, heads * head_dim)`.
    """
    if decodes_pages(query, context):
        return decode_pages(query, key, value, layer, context).flatten(1)[:, None]
    if context.goes_on is not None:
        return extend_pages(query, key, value, layer, context).flatten(2)
    if context.state is None:
        keys, values = key.transpose(1, 2), value.transpose(1, 2)
    else:
        keys, values = context.state.write(layer, key, value, context.where)
        query = query.to(keys.dtype)
    if context.mask is None or query.shape[1] > 1 or (query.is_cuda and query.element_size() == 2):
        return _attend_all(query, keys, values, context.mask)
    return _attend_one(query, keys, values, context.mask)


def decode_pages(query: Tensor, key: Tensor, value: Tensor, layer: int, context: Context) -> Tensor:
    """One new token a row on a CUDA device: stored and attended to in one kernel, which reads live pages only.

    Args: as in `attend`, with one token; there may be fewer value than key heads (`kernels.paged_attention`).
    Returns: `(batch, heads, value_dim)`.
    """
    state = context.state
    assert isinstance(state, PagedKVCache)
    query, key, value = (part[:, 0].to(state.keys.dtype) for part in (query, key, value))
    where = state.keys[layer], state.values[layer], state.table, context.positions[:, 0]
    return kernels.paged_attention(query, key, value, *where)


def decodes_pages(query: Tensor, context: Context) -> bool:
    return isinstance(context.state, PagedKVCache) and query.shape[1] == 1 and query.is_cuda


def extend_pages(query: Tensor, key: Tensor, value: Tensor, layer: int, context: Context) -> Tensor:
    """Several new tokens a row where `extends`: stored, and attended to with what their pages hold, in one kernel.

    Args: as in `attend`; there may be fewer value than key heads (`kernels.extend_attention`).
    Returns: `(batch, time, heads, value_dim)`.
    """
    state, start = context.state, context.goes_on
    assert isinstance(state, PagedKVCache)
    assert start is not None
    state.store(layer, key, value, context.where)
    query, key, value = (part.to(state.keys.dtype) for part in (query, key, value))
    where = state.keys[layer], state.values[layer], context.positions, start, state.table
    return kernels.extend_attention(query, key, value, *where)


def extends(position_ids: Tensor, state: KVCache) -> bool:
    """Whether rows may go on with several tokens each, and a kernel is made for that, which needs no mask."""
    several = position_ids.shape[1] > 1 and not torch.is_grad_enabled()
    return position_ids.is_cuda and several and isinstance(state, PagedKVCache) and not state.fresh


def _attend_all(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    query = query.transpose(1, 2)
    grouped = keys.shape[1] != query.shape[1]
    y = F.scaled_dot_product_attention(query, keys, values, mask, is_causal=mask is None, enable_gqa=grouped)
    return y.transpose(1, 2).flatten(2)


def _attend_one(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """One new token a row, where no fused kernel is made for that: two matrix products take half the time of
    `scaled_dot_product_attention` on a CPU. The heads of a group are the queries of one head, so no key is copied."""
    batch, _, heads, head_dim = query.shape
    query = query.reshape(batch, keys.shape[1], -1, head_dim)
    scores = (query * head_dim**-0.5) @ keys.transpose(-1, -2)
    wide = torch.promote_types(scores.dtype, torch.float32)
    y = scores.to(wide).masked_fill(~mask, -torch.inf).softmax(-1).to(values.dtype) @ values
    return y.reshape(batch, 1, heads * head_dim)
