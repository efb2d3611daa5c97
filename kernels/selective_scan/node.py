"""The selective scan as one node of a compiled graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nlrl.kernels.opaque import opaque

ARGUMENTS = (
    "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor position_ids, Tensor? state, "
    "Tensor? initial"
)


def node(function: Callable) -> Callable:
    """Of an implementation with the signature of `reference.selective_scan`."""
    op = opaque("selective_scan", ARGUMENTS, function, _outputs)

    def selective_scan(x, delta, A, B, C, D, position_ids, state=None, initial=None):
        return op(x, delta, A, B, C, D, position_ids, state, initial)

    return selective_scan


def _outputs(x: Tensor, delta, A: Tensor, *rest) -> tuple[Tensor, Tensor]:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), x.new_empty(
        (x.shape[0], *A.shape), dtype=torch.float32
    )
