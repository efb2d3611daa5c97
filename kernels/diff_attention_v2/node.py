"""Differential attention, version 2, as one node of a compiled graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nlrl.kernels.attention_node import attention_node, plain_calls
from nlrl.kernels.diff_attention_v2.eager import diff_attention_v2 as eager

NAME = "diff_attention_v2"
ARGUMENTS = "Tensor query, Tensor key, Tensor value, Tensor gate, Tensor? starts"


def node(function: Callable) -> Callable:
    """Of an implementation with the signature of `reference.diff_attention_v2`."""
    op = attention_node(NAME, ARGUMENTS, function, _outputs, results=3, kept=3)

    def diff_attention_v2(query, key, value, gate, starts=None):
        if plain_calls(NAME, starts is not None):
            return eager(query, key, value, gate, starts)
        return op(query, key, value, gate, starts)[0]

    return diff_attention_v2


def _outputs(query: Tensor, key, value, gate: Tensor, starts) -> tuple[Tensor, ...]:
    """y, O2 and the logarithms of both maps' sums."""
    batch, time, heads = gate.shape
    y, o2 = (query.new_empty((batch, time, heads, query.shape[3])) for _ in range(2))
    return y, o2, query.new_empty((batch, heads, 2, time), dtype=torch.float32)
