"""Losses of next-token predictions without all their logits in memory.

1. The logits of some tokens are made, turned into their gradients where they lie, multiplied into the gradients of
   hidden states and of the matrix, and forgotten (`by_tokens`; `linear_cross_entropy.by_columns` is another order).
2. The loss is a weighted sum, so its gradient is known before anybody asks for it but for one factor: forward makes
   it, backward multiplies, in place when the graph goes away with it and not at all by 1. That takes the three products
   of the plain formula, and none again. Logits, their 4-byte copies and gradients are never there for all tokens.
3. Beyond arguments and gradients there is room for as many logits as there are hidden numbers, and a tenth of
   everything more: few parts, as each reads and writes the sum of the matrix's gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_AT_ONCE = 1 << 26
"""Numbers, at least: 128 MB in two bytes. Fewer would make products too small."""
ALIGNED = 16
"""Numbers. A row of logits has whole such groups to itself: products and kernels are slow at others."""
ROUNDINGS = 4
"""So many parts of a sum may be rounded one by one, which halves the memory of the sum. As partial sums grow evenly, n
roundings add the variance of (n + 1) / 2 of the whole; one is there anyway, beside those of logits and slopes."""

Rows = Callable[[Tensor, slice, Tensor, bool], Tensor]
"""(logits of some tokens `(tokens, vocab)`, rows apart, which tokens, their weights, whether gradients are wanted) ->
the sum of their weighted losses, `()`, float32 at least. Wanted gradients replace the logits."""
Found = tuple[Tensor, Tensor | None, Tensor | None]
"""The loss, the gradients of hidden states and matrix."""
Make = Callable[[Tensor, Tensor, bool, bool], Found]
"""(hidden states, matrix, whether the gradient of the first, of the second is wanted) -> all of it."""
Scale = Callable[[Tensor, Tensor, bool], Tensor]
"""(gradient, factor `()`, whether the gradient may be overwritten) -> their product, in the gradient's dtype."""


class VocabularyLoss(torch.autograd.Function):
    """The sum over tokens of weight x loss."""

    @staticmethod
    def forward(ctx, hidden: Tensor, matrix: Tensor, make: Make, scale: Scale) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):  # dtypes are settled: sums must not be rounded
            total, *gradients = make(hidden, matrix, *ctx.needs_input_grad[:2])
        ctx.save_for_backward(*gradients)
        ctx.scale = scale
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, factor: Tensor):
        last = not _graph_is_kept()
        dhidden, dmatrix = (None if part is None else ctx.scale(part, factor, last) for part in ctx.saved_tensors)
        return dhidden, dmatrix, None, None


def _graph_is_kept() -> bool:
    """Whether the backward pass that is under way could be repeated (`retain_graph`); True if torch cannot say."""
    ask = getattr(getattr(torch._C, "_autograd", None), "_get_current_graph_task_keep_graph", None)
    return ask is None or ask()


def scaled(gradient: Tensor, factor: Tensor, overwrite: bool) -> Tensor:
    """`Scale` by PyTorch calls."""
    factor = factor.to(gradient.dtype)
    return gradient.mul_(factor) if overwrite else gradient * factor


def by_tokens(hidden: Tensor, matrix: Tensor, for_hidden: bool, for_matrix: bool, weights: Tensor, rows: Rows) -> Found:
    """The loss, and the gradients that are asked for, in the dtypes of what they belong to; some tokens at a time."""
    tokens, size = len(hidden), tokens_at_once(hidden, matrix)
    total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    dhidden = torch.empty_like(hidden) if for_hidden else None
    dmatrix = SumOfProducts(matrix, -(-tokens // size)) if for_matrix else None
    room = apart(hidden, min(size, tokens), len(matrix))
    for start in range(0, tokens, size):
        part = slice(start, min(start + size, tokens))
        logits = torch.mm(hidden[part], matrix.T, out=room[: part.stop - start])
        total += rows(logits, part, weights[part], for_hidden or for_matrix)
        if dhidden is not None:
            torch.mm(logits, matrix, out=dhidden[part])
        if dmatrix is not None:
            dmatrix.add(logits.T, hidden[part])
    room = logits = None  # the sum may need room to be rounded
    return total, dhidden, None if dmatrix is None else dmatrix.rounded()


def tokens_at_once(hidden: Tensor, matrix: Tensor) -> int:
    """In parts of about one size, whole tiles of products if they are larger than that."""
    most = max(1, max(LOGITS_AT_ONCE, hidden.numel() + spare(hidden, matrix)) // len(matrix))
    return even(len(hidden), most, 128)


def spare(hidden: Tensor, matrix: Tensor) -> int:
    """A tenth of the numbers of both, of their gradients and of as many logits as hidden numbers."""
    return (2 * matrix.numel() + 3 * hidden.numel()) // 10


def even(count: int, most: int, multiple: int) -> int:
    """The size of parts, at most `most`, that are as few as they can be and about the same."""
    size = -(-count // max(1, -(-count // most)))
    return max(1, min(most, -(-size // multiple) * multiple))


def apart(like: Tensor, rows: int, columns: int) -> Tensor:
    """Room for logits `(rows, columns)`; rows begin at multiples of `ALIGNED`."""
    return like.new_empty((rows, -(-columns // ALIGNED) * ALIGNED))[:, :columns]


class SumOfProducts:
    """Of parts that come one by one, in memory of the result's dtype if they are few, else in float32 at least."""

    def __init__(self, like: Tensor, parts: int):
        wide = torch.promote_types(like.dtype, torch.float32)
        self._sum = torch.empty(like.shape, dtype=like.dtype if parts <= ROUNDINGS else wide, device=like.device)
        self._dtype, self._begun = like.dtype, False

    def add(self, a: Tensor, b: Tensor) -> None:
        add_product(self._sum, a, b, self._begun)
        self._begun = True

    def rounded(self) -> Tensor:
        return self._sum.to(self._dtype) if self._begun else self._sum.to(self._dtype).zero_()


def add_product(total: Tensor, a: Tensor, b: Tensor, begun: bool) -> None:
    """`total` becomes a b, or total + a b if it has begun; rounded once, to its own dtype."""
    wide = torch.promote_types(a.dtype, torch.float32)
    if total.dtype == a.dtype and (a.is_cuda or not begun or wide == a.dtype):
        torch.addmm(total, a, b, out=total) if begun else torch.mm(a, b, out=total)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=wide, out=total) if begun else torch.mm(a, b, out_dtype=wide, out=total)
    else:
        product = a.to(wide) @ b.to(wide)
        total.add_(product) if begun else total.copy_(product)


def in_one_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What a matrix product would make of them: autocast's dtype where that is on."""
    kind = tensors[0].device.type
    if torch.is_autocast_enabled(kind):
        return tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)
    return tensors
