"""Matrices of one bit a weight: a sign, and a learned scale and shift for each input (arXiv 2411.11843, section 3.2;
arXiv 2407.07093, equations 1 to 3).

    W~_ij = alpha_j sign(W_ij) + beta_j          y = x W~^T = (alpha * x) S^T + (x . beta)

alpha and beta belong to the input columns, as in the authors' code; most binary networks scale output rows. The form on
the right multiplies by exact +1 and -1 in any dtype, where W~ itself would be rounded.

Gradients, with u = dy S and c = the sum of dy over the outputs (straight through the sign, without clipping):

    dx = alpha * u + beta c      dalpha = sum x * u      dbeta = sum x c      dW = dy^T (alpha * x)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlrl import kernels


class FBILinear(nn.Module):
    """A matrix whose signs count. The weights they are the signs of are latent: the optimizer moves them."""

    def __init__(self, inputs: int, outputs: int, device=None, dtype=None):
        super().__init__()
        like = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(outputs, inputs, **like))
        self.alpha = nn.Parameter(torch.empty(inputs, **like))
        self.beta = nn.Parameter(torch.empty(inputs, **like))

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: `(..., inputs)`. Returns: `(..., outputs)`."""
        return fbi_linear(x, signs(self.weight), self.alpha, self.beta)

    @torch.no_grad()
    def fit_scales(self) -> None:
        """Sets beta to each column's mean and alpha to its mean distance from that."""
        from transformers import initialization as init  # leaves alone what a checkpoint has given

        mean = self.weight.mean(0)
        init.copy_(self.beta, mean)
        init.copy_(self.alpha, (self.weight - mean).abs().mean(0))

    @torch.no_grad()
    def dense(self) -> Tensor:
        """W~, `(outputs, inputs)`, in float32 at least."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        return self.alpha.to(wide) * signs(self.weight).to(wide) + self.beta.to(wide)


def fbi_linear(x: Tensor, signs: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Args: x: `(..., inputs)`; signs: `(outputs, inputs)`, +1 and -1; alpha, beta: `(inputs,)`."""
    y = F.linear(x * alpha, signs)
    return y + (x * beta).sum(-1, keepdim=True).to(y.dtype)  # narrow under autocast, as y is


def signs(weight: Tensor) -> Tensor:
    """+1 or -1 by the sign bit, with the gradient of the identity.

    By the sign bit, a zero is +1 and a negative weight that a narrower dtype rounds to zero stays -1, so storing latent
    weights in 16 bits or as bits changes no sign. (The authors' code takes 0 for the sign of an exact zero.)
    """
    return _Sign.apply(weight)  # pyright: ignore[reportReturnType]


class PackedFBILinear(nn.Module):
    """An `FBILinear` that holds its signs as bits: the same function, 1 bit a weight. Scales and shifts can be trained,
    signs cannot.

    On a CPU the matrix is unpacked to multiply by it, a block of rows at a time, and dropped; a GPU reads bits.
    """

    bits: Tensor

    def __init__(self, inputs: int, outputs: int, device=None, dtype=None):
        super().__init__()
        self.inputs = inputs
        like = {"device": device, "dtype": dtype}
        self.register_buffer("bits", torch.zeros(outputs, -(-inputs // 8), dtype=torch.uint8, device=device))
        self.alpha = nn.Parameter(torch.empty(inputs, **like))
        self.beta = nn.Parameter(torch.empty(inputs, **like))

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: `(..., inputs)`. Returns: `(..., outputs)`."""
        return kernels.bit_linear(x, self.bits, self.alpha, self.beta)


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor) -> Tensor:
        return torch.ones_like(weight).copysign_(weight)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient
