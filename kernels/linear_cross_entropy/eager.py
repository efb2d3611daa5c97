"""The same, some tokens at a time; formulas in `reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from nlrl.kernels.vocabulary import VocabularyLoss, in_one_dtype


def linear_cross_entropy(hidden: Tensor, matrix: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """See `reference.linear_cross_entropy`."""

    def rows(logits: Tensor, part: slice, weights: Tensor, gradients: bool) -> Tensor:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logprobs = wide.log_softmax(-1)
        mine = targets[part, None]
        losses = -logprobs.gather(1, mine)[:, 0]
        if gradients:
            slope = logprobs.exp_()
            slope.scatter_add_(1, mine, torch.full_like(mine, -1, dtype=slope.dtype))
            logits.copy_(slope * weights[:, None])
        return (losses * weights).sum()

    hidden, matrix = in_one_dtype(hidden, matrix)
    return VocabularyLoss.apply(hidden, matrix, weights.detach(), rows)
