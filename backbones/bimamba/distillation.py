"""Autoregressive distillation: a student learns the whole next-token distribution of a teacher, and nothing else
(arXiv 2411.11843, section 3.3; arXiv 2407.07093, equation 5).

    loss = mean over tokens of  - sum over v of p_T(v) log p_S(v)        dloss/dlogits = (p_S - p_T) / tokens

Temperature 1, full vocabulary, no hard labels. It is the KL divergence from teacher to student plus the teacher's
entropy, which is what it ends at.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nlrl import kernels
from nlrl.backbones.packing import TokenBatch
from nlrl.backbones.train_step import Loss, keeps_no_logits, target_hidden, targets_of, wide_logits
from nlrl.errors import NLRLError


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean cross-entropy in nats, `()`. Args: logits `(..., vocab)` of both; no gradient reaches the teacher's."""
    return _cross_entropy(student_logits, teacher_logits).mean()


def distilled_from(teacher) -> Loss:
    """A loss for `TrainStep` in place of `target_loss`: the same targets (the tokens of completions) with the same
    weights, but the teacher's distribution at each in place of the token.

    Args: teacher: a `Backbone` on the student's device, of the same vocabulary; put into evaluation mode and frozen.
    """
    teacher.eval().requires_grad_(False)

    def loss(model, batch: TokenBatch, masked: bool = True, static: bool = False) -> tuple[Tensor, Tensor]:
        targets = targets_of(batch, static)
        with torch.no_grad():
            theirs = target_hidden(teacher, batch, masked, targets)
        ours = target_hidden(model, batch, masked, targets)
        if keeps_no_logits(model, ours):
            matrices = model.vocabulary(), theirs, teacher.vocabulary().detach()
            total = kernels.linear_distillation(ours, *matrices, targets.weights)
        else:
            with torch.no_grad():
                wanted = wide_logits(teacher, theirs)
            total = (_cross_entropy(wide_logits(model, ours), wanted) * targets.weights).sum()
        return total, targets.weights.sum()

    return loss


def check_teacher(teacher, student) -> None:
    """Raises: NLRLError: the two have vocabularies of different sizes."""
    theirs, ours = teacher.config.vocab_size, student.config.vocab_size
    if theirs != ours:
        raise NLRLError(
            f"the teacher has a vocab_size of {theirs}, the student of {ours}; distillation compares tokens"
        )


def _cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """`(tokens,)`, in float32 at least."""
    student, teacher = (
        logits.flatten(0, -2).to(torch.promote_types(logits.dtype, torch.float32))
        for logits in (student_logits, teacher_logits.detach())
    )
    return F.cross_entropy(student, teacher.softmax(-1), reduction="none")
