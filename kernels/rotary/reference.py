"""Turning pairs of channels in plain PyTorch (rotary position embedding, arXiv 2104.09864, equation 34).

    (a, b) -> (a cos - b sin, b cos + a sin)        backward: the same with -sin

With n heads of d channels in 2-byte storage a fused pass moves 4 n d bytes, and 8 d / 2 bytes of cos and sin a token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Turns pairs of channels.

    Args:
        x: `(batch, time, heads, head_dim)`.
        cos, sin: `(batch, time, 1, head_dim / 2)`, or 1 in place of batch.
        interleaved: pairs are (2j, 2j + 1), as in the paper; else (j, j + head_dim / 2), as Hugging Face Llama stores
            them.
    Returns: as x.
    """
    a, b = pairs(x.to(cos.dtype), interleaved)
    turned = (a * cos - b * sin, b * cos + a * sin)
    y = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return y.to(x.dtype)


def pairs(x: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Views of the first and the second channels of all pairs."""
    if interleaved:
        return x[..., 0::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]
