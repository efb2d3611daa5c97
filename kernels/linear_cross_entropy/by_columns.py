"""Cross-entropy and its gradients, some columns of the logits at a time: all tokens, a part of the vocabulary.

1. The gradient of a part of the matrix is one product over all tokens, complete and rounded once. What adds up part by
   part is the gradient of hidden states: tokens x width numbers in float32, where the order by tokens has vocabulary x
   width of them or rounds each part. So this is for a vocabulary that is larger than the number of tokens, and many
   parts.
2. Slopes need the normaliser of the whole vocabulary. So logits are made, reduced to their normalisers by part and
   then wanted again. The matrix's gradient is still empty then: parts of the logits wait in its memory, one where it
   was made, and only the others are multiplied again. With n tokens, d channels: 4 products less a share of about d / n
   of one; with n <= d nothing is made twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from nlrl.kernels import vocabulary
from nlrl.kernels.vocabulary import ALIGNED, Found, add_product, even, spare, tokens_at_once

Reduce = Callable[[Tensor, int, Tensor, Tensor], None]
"""(logits `(tokens, columns)`, the first column, normalisers `(tokens,)` of this part, which are written, and logits of
the targets `(tokens,)`, which are written where a target is among the columns)."""
Slopes = Callable[[Tensor, Tensor, int, Tensor], None]
"""(logits, where their weighted slopes go, the first column, normalisers `(tokens,)` of the whole vocabulary)."""


class Part(NamedTuple):
    """Columns of the logits, and where they wait for their normaliser."""

    columns: slice
    place: Tensor
    """`(tokens, columns)`."""
    kept: bool
    """Or made again."""


def pays(hidden: Tensor, matrix: Tensor) -> bool:
    """Whether this order needs less memory than that by tokens, or rounds less."""
    parts = -(-len(hidden) // tokens_at_once(hidden, matrix))
    return hidden.element_size() == 2 and parts > vocabulary.ROUNDINGS and len(matrix) > len(hidden)


def by_columns(
    hidden: Tensor, matrix: Tensor, for_hidden: bool, weights: Tensor, reduce: Reduce, slopes: Slopes
) -> Found:
    """The loss, the gradient of hidden states if it is asked for, and that of the matrix."""
    dmatrix = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
    size = _columns_at_once(hidden, matrix)
    room = hidden.new_empty((len(hidden), size))
    parts = _parts(hidden, dmatrix, room)
    norm, wanted = _normalisers(hidden, matrix, parts, reduce)
    sums = torch.empty(hidden.shape, dtype=torch.float32, device=hidden.device) if for_hidden else None
    for number, part in enumerate(_in_order(parts)):
        columns, slope = matrix[part.columns], room[:, : part.place.shape[1]]
        if not part.kept:
            torch.mm(hidden, columns.T, out=part.place)
        slopes(part.place, slope, part.columns.start, norm)
        torch.mm(slope.T, hidden, out=dmatrix[part.columns])
        if sums is not None:
            add_product(sums, slope, columns, begun=number > 0)
    del room, parts, part, slope
    return ((norm - wanted) * weights).sum(), None if sums is None else sums.to(hidden.dtype), dmatrix


def _columns_at_once(hidden: Tensor, matrix: Tensor) -> int:
    """Whole tiles of products, or groups."""
    most = max(vocabulary.LOGITS_AT_ONCE, spare(hidden, matrix)) // len(hidden)
    return even(len(matrix), max(ALIGNED, most // ALIGNED * ALIGNED), 256 if most >= 1024 else ALIGNED)


def _parts(hidden: Tensor, dmatrix: Tensor, room: Tensor) -> list[Part]:
    """Part i waits i steps into the matrix's gradient, as long as that is before the gradient of the last part."""
    (tokens, size), (vocab, width) = room.shape, dmatrix.shape
    starts, step = range(0, vocab, size), size * max(tokens, width)
    found, free = [], dmatrix.view(-1)[: starts[-1] * width]
    for number, start in enumerate(starts):
        columns = slice(start, min(start + size, vocab))
        kept = start != starts[-1] and (number + 1) * step <= free.numel()
        place = free[number * step : number * step + tokens * size].view(tokens, size) if kept else room
        found.append(Part(columns, place[:, : columns.stop - start], kept or start == starts[-1]))
    return found


def _in_order(parts: list[Part]) -> Iterator[Part]:
    """The last one first: it is where it was made. Then each writes its part of the matrix's gradient over logits that
    nobody needs any more, its own or those of parts before it."""
    yield parts[-1]
    yield from parts[:-1]


def _normalisers(hidden: Tensor, matrix: Tensor, parts: list[Part], reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Of each token, and the logit of its target, `(tokens,)`; leaves logits where their parts say."""
    norms = torch.empty((len(parts), len(hidden)), dtype=torch.float32, device=hidden.device)
    wanted = torch.empty_like(norms[0])
    for part, norm in zip(parts, norms, strict=True):
        torch.mm(hidden, matrix[part.columns].T, out=part.place)
        reduce(part.place, part.columns.start, norm, wanted)
    return norms.logsumexp(0), wanted
