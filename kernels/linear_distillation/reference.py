"""The vocabularies' matrices of a student and a teacher, and the cross-entropy of what they predict, in plain PyTorch
(arXiv 2407.07093, equation 5: temperature 1, all tokens, no hard labels).

    z = h W'        t = g U'        loss = sum over tokens of w (log sum_v exp z_v - sum_v softmax(t)_v z_v)

    dz = w (softmax(z) - softmax(t))        dh = dz W        dW = dz' h

With n tokens, d and e channels and V tokens in the vocabulary: 2 n (d + e) V FLOPs forward, 4 n d V more with the
gradients.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_distillation(
    hidden: Tensor, matrix: Tensor, teacher_hidden: Tensor, teacher_matrix: Tensor, weights: Tensor
) -> Tensor:
    """
    Args:
        hidden, matrix: `(tokens, width)` and `(vocab, width)`, the student's.
        teacher_hidden, teacher_matrix: the teacher's, perhaps of another width; no gradient reaches them.
        weights: `(tokens,)`; no gradient reaches them.
    Returns: the sum of weighted losses in nats, `()`, in float32 at least.
    """
    student, teacher = F.linear(hidden, matrix), F.linear(teacher_hidden.detach(), teacher_matrix.detach())
    student, teacher = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (student, teacher))
    return (F.cross_entropy(student, teacher.softmax(-1), reduction="none") * weights.detach()).sum()
