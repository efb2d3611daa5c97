"""Differential attention as one node of a compiled graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nlrl.kernels.attention_node import attention_node, plain_calls
from nlrl.kernels.diff_attention.eager import diff_attention as eager

NAME = "diff_attention"
TENSORS = "Tensor query, Tensor key, Tensor value, Tensor lambda_, Tensor weight"
ARGUMENTS = f"{TENSORS}, float output_scale, float eps, Tensor? starts"


def node(function: Callable) -> Callable:
    """Of an implementation with the signature of `reference.diff_attention`."""
    op = attention_node(NAME, ARGUMENTS, function, _outputs, results=4, kept=3)

    def diff_attention(query, key, value, lambda_, weight, output_scale=1.0, eps=1e-5, starts=None):
        if plain_calls(NAME, starts is not None):
            return eager(query, key, value, lambda_, weight, output_scale, eps, starts)
        return op(query, key, value, lambda_, weight, output_scale, eps, starts)[0]

    return diff_attention


def _outputs(query: Tensor, key, value: Tensor, *rest) -> tuple[Tensor, ...]:
    """y, O, O2 and the logarithms of both maps' sums."""
    batch, time, heads = query.shape[:3]
    y, o, o2 = (query.new_empty((batch, time, heads // 2, value.shape[3])) for _ in range(3))
    return y, o, o2, query.new_empty((batch, heads // 2, 2, time), dtype=torch.float32)
