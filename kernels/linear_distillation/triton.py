"""Distillation for CUDA: the rows of `linear_cross_entropy.triton` with a teacher's logits beside them."""

# pyright: reportMissingImports=false

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from nlrl.kernels.linear_cross_entropy.triton import launch, scaled
from nlrl.kernels.linear_distillation.eager import linear_distillation as eager
from nlrl.kernels.vocabulary import VocabularyLoss, apart, by_tokens, in_one_dtype


def linear_distillation(
    hidden: Tensor, matrix: Tensor, teacher_hidden: Tensor, teacher_matrix: Tensor, weights: Tensor
) -> Tensor:
    """See `reference.linear_distillation`; `eager` takes float64."""
    if hidden.dtype == torch.float64 or not len(hidden):
        return eager(hidden, matrix, teacher_hidden, teacher_matrix, weights)

    def rows(logits: Tensor, part: slice, weights: Tensor, gradients: bool) -> Tensor:
        wanted = apart(teacher[0], len(logits), len(teacher[1]))
        torch.mm(teacher[0][part], teacher[1].T, out=wanted)
        return launch(logits, None, wanted, weights, gradients)

    hidden, matrix = in_one_dtype(hidden, matrix)
    teacher = in_one_dtype(teacher_hidden.detach(), teacher_matrix.detach())
    return VocabularyLoss.apply(hidden, matrix, partial(by_tokens, weights=weights.detach(), rows=rows), scaled)
