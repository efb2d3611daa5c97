"""The next token of every row and its log-probability, from final hidden states, in plain PyTorch.

    logits = h (s W)'        token, logprob = sample(logits), see `kernels.sample`

With n rows, d channels and V tokens: 2 n d V FLOPs, and at the least d (n + V) numbers read; two calls write and read
n V logits besides.

What is the same as in two calls: the noise of a token, which depends on seed, step and token alone. A fused kernel
draws from sums in float32 that were never rounded to the dtype of W, so it takes another token than two calls do only
where rounding decides between two of them, and it is the nearer to the exact choice.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nlrl.kernels.sample.reference import sample


def sample_head(
    hidden: Tensor,
    matrix: Tensor,
    seeds: Tensor,
    steps: Tensor,
    temperature: Tensor,
    bitmask: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws one token a row. Not for top-k, top-p or min-p, which need all logits of a row before they draw.

    Args:
        hidden, matrix: `(rows, width)` and `(vocab, width)`, of one dtype: bfloat16, float16, float32 or float64.
        seeds, steps, temperature, bitmask: as for `kernels.sample`.
        scale: `(vocab,)`, multiplies each token's logit (nGPT's s_z); None for none.
    Returns: tokens `(rows,)` int64; logprobs `(rows,)` float32 (float64 of float64). As `kernels.sample`.
    """
    return sample(F.linear(hidden, scaled(matrix, scale)), seeds, steps, temperature, bitmask)


def scaled(matrix: Tensor, scale: Tensor | None) -> Tensor:
    """The matrix that makes logits of hidden states."""
    return matrix if scale is None else (matrix * scale[:, None]).to(matrix.dtype)
