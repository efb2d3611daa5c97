"""The one-bit linear map in blocks of rows that stay in a core's caches; formulas in `reference`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nlrl.kernels.bit_linear.reference import unpack_signs

BLOCK_WEIGHTS = 1 << 18
"""Weights unpacked at once on a CPU. Other devices unpack whole matrices."""


def bit_linear(x: Tensor, bits: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """See `reference.bit_linear`; differentiable in x, alpha and beta."""
    scaled, shift = x * alpha, (x * beta).sum(-1, keepdim=True)
    rows = max(1, BLOCK_WEIGHTS // x.shape[-1]) if x.device.type == "cpu" else len(bits)
    blocks = [F.linear(scaled, unpack_signs(part, x.shape[-1], scaled.dtype)) for part in bits.split(rows)]
    y = torch.cat(blocks, -1) if len(blocks) > 1 else blocks[0]
    return y + shift.to(y.dtype)  # narrow under autocast, as y is
