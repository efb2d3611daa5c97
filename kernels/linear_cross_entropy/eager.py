"""The same, some logits at a time; formulas in `reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from nlrl.kernels.linear_cross_entropy.by_columns import by_columns, pays
from nlrl.kernels.vocabulary import Found, VocabularyLoss, by_tokens, in_one_dtype, scaled


def linear_cross_entropy(hidden: Tensor, matrix: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """See `reference.linear_cross_entropy`."""

    def make(hidden: Tensor, matrix: Tensor, for_hidden: bool, for_matrix: bool) -> Found:
        if for_matrix and pays(hidden, matrix):
            return by_columns(hidden, matrix, for_hidden, weights, reduce, slopes)
        return by_tokens(hidden, matrix, for_hidden, for_matrix, weights, rows)

    def rows(logits: Tensor, part: slice, weights: Tensor, gradients: bool) -> Tensor:
        logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        mine = targets[part, None]
        losses = -logprobs.gather(1, mine)[:, 0]
        if gradients:
            slope = logprobs.exp_()
            slope.scatter_add_(1, mine, torch.full_like(mine, -1, dtype=slope.dtype))
            logits.copy_(slope * weights[:, None])
        return (losses * weights).sum()

    def reduce(logits: Tensor, first: int, norm: Tensor, wanted: Tensor) -> None:
        norm.copy_(logits.float().logsumexp(-1))
        at = targets - first
        here = (at >= 0) & (at < logits.shape[1])
        mine = logits.gather(1, at.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        torch.where(here, mine.float(), wanted, out=wanted)

    def slopes(logits: Tensor, slope: Tensor, first: int, norm: Tensor) -> None:
        wide = (logits.float() - norm[:, None]).exp_()
        columns = torch.arange(first, first + logits.shape[1], device=logits.device)
        slope.copy_((wide - (columns == targets[:, None]).float()) * weights[:, None])

    hidden, matrix = in_one_dtype(hidden, matrix)
    weights = weights.detach()
    return VocabularyLoss.apply(hidden, matrix, make, scaled)
