"""The same, some tokens at a time; formulas in `reference`."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from nlrl.kernels.vocabulary import VocabularyLoss, by_tokens, in_one_dtype, scaled


def linear_distillation(
    hidden: Tensor, matrix: Tensor, teacher_hidden: Tensor, teacher_matrix: Tensor, weights: Tensor
) -> Tensor:
    """See `reference.linear_distillation`."""

    def rows(logits: Tensor, part: slice, weights: Tensor, gradients: bool) -> Tensor:
        kind = torch.promote_types(logits.dtype, torch.float32)
        wanted = (teacher[0][part] @ teacher[1].T).to(kind).softmax(-1)
        logprobs = logits.to(kind).log_softmax(-1)
        losses = -(wanted * logprobs).sum(-1)
        if gradients:
            logits.copy_((logprobs.exp_() - wanted) * weights[:, None])
        return (losses * weights).sum()

    hidden, matrix = in_one_dtype(hidden, matrix)
    teacher = in_one_dtype(teacher_hidden.detach(), teacher_matrix.detach())
    return VocabularyLoss.apply(hidden, matrix, partial(by_tokens, weights=weights.detach(), rows=rows), scaled)
