"""Attention over a ring for CUDA: the program of `paged_attention`, with slots in place of pages.

A slot that the new token takes from the oldest one is written by the program that has read it, so a launch that divides
a row writes nothing that another program still reads.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import torch
from torch import Tensor

from nlrl.kernels.paged_attention.reference import HeadGroups
from nlrl.kernels.paged_attention.triton import Extras, Ring, attend
from nlrl.kernels.ring_attention.eager import ring_attention as eager
from nlrl.kernels.ring_attention.reference import check_heads


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
    """See `reference.ring_attention`; `eager` takes float64. Vectors of keys and values must be contiguous."""
    extras = Extras(prefix_key, prefix_value, cos, sin)
    if keys.dtype == torch.float64 or not query.shape[0]:
        return eager(query, key, value, keys, values, positions, reach, writes, *extras)
    check_heads(query, keys, values)
    kv_heads = keys.shape[1]
    groups = HeadGroups(kv_heads, kv_heads, query.shape[1] // kv_heads, 1)
    return attend(groups, query, key, value, keys, values, None, positions, None, extras, Ring(reach, writes))
