"""One Adam step of a matrix whose vectors are put back onto the unit sphere, in plain PyTorch (arXiv 1412.6980,
algorithm 1, and arXiv 2410.01131, section 2.6).

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
    p = w - lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)
    w = p / |p|, vector by vector

With n weights in float32 a fused step moves 28 n bytes (reads w, g, m, v; writes w, m, v; 30 n with a rounded copy);
Adam followed by a normalisation that reads the matrix twice moves 40 n.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_NORM = 1e-12
"""A shorter vector counts as this long."""


def adam_normalise(
    weight: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    learning_rate: Tensor | float,
    betas: tuple[float, float],
    eps: float,
    axis: int,
    rounded: Tensor | None = None,
) -> None:
    """Changes weight, exp_avg, exp_avg_sq (and rounded) in place.

    Args:
        weight, grad, exp_avg, exp_avg_sq: `(rows, columns)`; the state as `torch.optim.AdamW` keeps it.
        step: `()`, this step's number, from 1.
        learning_rate: a number or `()`.
        axis: 1 if rows are the unit vectors, 0 if columns are.
        rounded: takes a copy of the new weight, in its own dtype.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    gradient, time = grad.to(wide), step.to(torch.float64)
    exp_avg.lerp_(gradient.to(exp_avg.dtype), 1 - betas[0])
    exp_avg_sq.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    size = (learning_rate / (1 - betas[0] ** time)).to(wide)
    scale = (1 - betas[1] ** time).rsqrt().to(wide)
    moved = weight.to(wide) - size * exp_avg / (exp_avg_sq.sqrt() * scale + eps)
    moved /= torch.linalg.vector_norm(moved, dim=axis, keepdim=True).clamp_min(SMALLEST_NORM)
    weight.copy_(moved)
    if rounded is not None:
        rounded.copy_(moved)
