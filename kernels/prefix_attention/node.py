"""Attention behind a prefix as one node of a compiled graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nlrl.kernels.attention_node import attention_node, plain_calls
from nlrl.kernels.prefix_attention.eager import prefix_attention as eager

NAME = "prefix_attention"
ARGUMENTS = "Tensor query, Tensor key, Tensor value, Tensor? prefix_key, Tensor? prefix_value, Tensor? starts"


def node(function: Callable) -> Callable:
    """Of an implementation with the signature of `reference.prefix_attention`."""
    op = attention_node(NAME, ARGUMENTS, function, _outputs, results=2, kept=2)

    def prefix_attention(query, key, value, prefix_key=None, prefix_value=None, starts=None):
        if plain_calls(NAME, starts is not None):
            return eager(query, key, value, prefix_key, prefix_value, starts)
        return op(query, key, value, prefix_key, prefix_value, starts)[0]

    return prefix_attention


def _outputs(query: Tensor, key, value: Tensor, *rest) -> tuple[Tensor, ...]:
    """y and the logarithms of the maps' sums."""
    batch, time, heads = query.shape[:3]
    y = query.new_empty((batch, time, heads, value.shape[3]))
    return y, query.new_empty((batch, heads, time), dtype=torch.float32)
