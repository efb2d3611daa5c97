"""Losses of next-token predictions without all their logits in memory.

The logits of some tokens are made, turned into their gradients where they lie, multiplied into the gradients of hidden
states and of the matrix, and forgotten. The loss is a weighted sum, so its gradient is known before anybody asks for it
but for one factor: forward makes it, backward multiplies. That takes the three products of the plain formula, and none
again. Compared with autograd of it, memory for 2-byte logits, their 4-byte copies and gradients is not needed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_AT_ONCE = 1 << 26
"""Numbers: 128 MB in two bytes. Fewer would make products too small, more buys nothing."""

Rows = Callable[[Tensor, slice, Tensor, bool], Tensor]
"""(logits of some tokens `(tokens, vocab)`, which tokens, their weights, whether gradients are wanted) -> the sum of
their weighted losses, `()`, float32 at least. Wanted gradients replace the logits."""


class VocabularyLoss(torch.autograd.Function):
    """The sum over tokens of weight x loss."""

    @staticmethod
    def forward(ctx, hidden: Tensor, matrix: Tensor, weights: Tensor, rows: Rows) -> Tensor:
        wanted = ctx.needs_input_grad[:2]
        total, *gradients = loss_and_gradients(hidden, matrix, weights, rows, *wanted)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, factor: Tensor):
        dhidden, dmatrix = (None if part is None else part * factor.to(part.dtype) for part in ctx.saved_tensors)
        return dhidden, dmatrix, None, None


def loss_and_gradients(
    hidden: Tensor, matrix: Tensor, weights: Tensor, rows: Rows, for_hidden: bool, for_matrix: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss, and the gradients that are asked for, in the dtypes of what they belong to."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    total = torch.zeros((), dtype=wide, device=hidden.device)
    dhidden = torch.empty_like(hidden) if for_hidden else None
    dmatrix = torch.zeros(matrix.shape, dtype=wide, device=matrix.device) if for_matrix else None
    size = max(1, LOGITS_AT_ONCE // len(matrix))
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        logits = hidden[part] @ matrix.T
        total += rows(logits, part, weights[part], for_hidden or for_matrix)
        if dhidden is not None:
            torch.mm(logits, matrix, out=dhidden[part])
        if dmatrix is not None:
            dmatrix += _wide_product(logits.T, hidden[part])
    return total, dhidden, None if dmatrix is None else dmatrix.to(matrix.dtype)


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """In float32 at least: parts of a sum must not be rounded one by one."""
    if a.is_cuda and a.element_size() == 2:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.to(torch.promote_types(a.dtype, torch.float32)) @ b.to(torch.promote_types(b.dtype, torch.float32))


def in_one_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What a matrix product would make of them: autocast's dtype where that is on."""
    kind = tensors[0].device.type
    if torch.is_autocast_enabled(kind):
        return tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)
    return tensors
