"""A linear map whose matrix is stored as signs (arXiv 2411.11843, section 3.2; arXiv 2407.07093, equations 1 to 3).

    W~_ij = alpha_j S_ij + beta_j,  S_ij in {+1, -1}          y = x W~^T = (alpha * x) S^T + (x . beta)

The form on the right multiplies by exact +1 and -1 in any dtype, where W~ itself would be rounded. With u = dy S and
c = the sum of dy over the outputs (signs get no gradient):

    dx = alpha * u + beta c      dalpha = sum x * u      dbeta = sum x c

Eight weights of a row are a byte, the first in its lowest bit; a set bit is +1. With m rows, k inputs and n outputs a
forward moves k n / 8 bytes of signs, a sixteenth of what a 2-byte matrix would read, and 2 m (k + n) bytes of 2-byte
numbers. It does 2 m k n FLOPs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bit_linear(x: Tensor, bits: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """
    Args:
        x: `(..., inputs)`.
        bits: uint8 `(outputs, inputs / 8, rounded up)`, of `pack_signs`.
        alpha, beta: `(inputs,)`, scale and shift of each input.

    Returns:
        `(..., outputs)`.
    """
    y = F.linear(x * alpha, unpack_signs(bits, x.shape[-1], torch.promote_types(x.dtype, alpha.dtype)))
    return y + (x * beta).sum(-1, keepdim=True).to(y.dtype)


def pack_signs(weight: Tensor) -> Tensor:
    """The signs of `(outputs, inputs)` as uint8 `(outputs, inputs / 8, rounded up)`: eight weights of a row are a byte,
    the first in its lowest bit; a set bit is +1. A zero counts by its sign bit."""
    positive = F.pad((~weight.signbit()).to(torch.uint8), (0, -weight.shape[1] % 8))
    places = torch.arange(8, dtype=torch.uint8, device=weight.device)
    return (positive.unflatten(1, (-1, 8)) << places).sum(-1, dtype=torch.uint8)


def unpack_signs(bits: Tensor, inputs: int, dtype: torch.dtype) -> Tensor:
    """+1 and -1, `(outputs, inputs)`, of what `pack_signs` made."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    ones = (bits[..., None] >> places) & 1
    return ones.flatten(1)[:, :inputs].to(dtype).mul_(2).sub_(1)
