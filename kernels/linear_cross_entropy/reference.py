"""A vocabulary's matrix and the cross-entropy of what it predicts, in plain PyTorch.

    z = h W'        loss = sum over tokens of w (log sum_v exp z_v - z_target)

    dz = w (softmax(z) - onehot(target))        dh = dz W        dW = dz' h

With n tokens, d channels and V tokens in the vocabulary: 2 n d V FLOPs forward, 6 n d V with the gradients. A fused
kernel reads logits twice and writes their gradients, which counts for little beside the products from about d = 1,000
on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_cross_entropy(hidden: Tensor, matrix: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """
    Args:
        hidden: `(tokens, width)`.
        matrix: `(vocab, width)`.
        targets: `(tokens,)` long.
        weights: `(tokens,)`; no gradient reaches them.
    Returns: the sum of weighted losses in nats, `()`, in float32 at least.
    """
    logits = F.linear(hidden, matrix)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (F.cross_entropy(logits, targets, reduction="none") * weights.detach()).sum()
