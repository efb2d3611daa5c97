"""The mean of two normalised tensors by PyTorch's own norm; formulas in `reference`."""

from __future__ import annotations

from torch import Tensor

from nlrl.kernels.rms_norm.eager import rms_norm


def dual_norm(a: Tensor, b: Tensor, a_weight: Tensor, b_weight: Tensor, eps: float = 1e-6) -> Tensor:
    """See `reference.dual_norm`."""
    first, second = rms_norm(a, a_weight, eps), rms_norm(b, b_weight, eps)
    return (first + second) / 2  # pyright: ignore[reportOperatorIssue]  # without a residual it is one tensor
