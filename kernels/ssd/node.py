"""The SSD scan as one node of a compiled graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nlrl.kernels.opaque import opaque
from nlrl.kernels.ssd.reference import written

ARGUMENTS = "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor position_ids, Tensor? state, Tensor? D"


def node(function: Callable) -> Callable:
    """Of an implementation with the signature of `reference.ssd`; it chooses its own chunks."""
    op = opaque("ssd", ARGUMENTS, function, _outputs)

    def ssd(x, dt, A, B, C, position_ids, state=None, D=None, chunk=0, overwrite=False):
        y, after = op(x, dt, A, B, C, position_ids, state, D)
        return y, written(state, after) if overwrite else after

    return ssd


def _outputs(x: Tensor, dt, A, B: Tensor, *rest) -> tuple[Tensor, Tensor]:
    after = x.new_empty((x.shape[0], *x.shape[2:], B.shape[3]), dtype=torch.float32)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), after
