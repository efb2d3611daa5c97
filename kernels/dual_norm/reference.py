"""The mean of two tensors, each normalised by its own RMSNorm, in plain PyTorch (arXiv 2411.13676, equation 3).

    y = (w_a n(a) + w_b n(b)) / 2,      n(x) = x (mean(x^2) + eps)^(-1/2)

Backward, each side is RMSNorm of half the gradient (`rms_norm`). With n rows of d channels in 2-byte storage a fused
forward moves 6 n d bytes, backward 10 n d; a chain of two norms, a sum and a division moves 18 n d forward.
"""

from __future__ import annotations

from torch import Tensor

from nlrl.kernels.rms_norm.reference import rms_norm


def dual_norm(a: Tensor, b: Tensor, a_weight: Tensor, b_weight: Tensor, eps: float = 1e-6) -> Tensor:
    """
    Args:
        a, b: `(..., width)`, of one shape and dtype.
        a_weight, b_weight: `(width,)`.
    Returns: as a. Sums are in float32 at least.
    """
    first, second = (rms_norm(x, weight, eps) for x, weight in ((a, a_weight), (b, b_weight)))
    return (first + second) / 2  # pyright: ignore[reportOperatorIssue]  # without a residual it is one tensor
