"""The product by cuBLAS and the draw by `kernels.sample`'s kernel: what one launch must beat."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nlrl.kernels.sample_head.reference import scaled


def sample_head(
    hidden: Tensor,
    matrix: Tensor,
    seeds: Tensor,
    steps: Tensor,
    temperature: Tensor,
    bitmask: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.sample_head`; Triton is imported here, at the first call."""
    from nlrl.kernels.sample.triton import sample

    return sample(F.linear(hidden, scaled(matrix, scale)), seeds, steps, temperature, bitmask)
