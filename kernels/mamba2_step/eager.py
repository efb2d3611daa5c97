"""The step by the ops that a longer text goes through; formulas in `reference`."""

from __future__ import annotations

from torch import Tensor

from nlrl.kernels.causal_conv1d.eager import causal_conv1d
from nlrl.kernels.mamba2_step.reference import composed
from nlrl.kernels.ssd.eager import ssd


def mamba2_step(
    projected: Tensor,
    window: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    A_log: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    positions: Tensor,
    eps: float,
    groups: int = 1,
    norm_groups: int = 1,
) -> Tensor:
    """See `reference.mamba2_step`."""
    return composed(
        causal_conv1d, ssd, projected, window, state, conv_weight, conv_bias, A_log, D, dt_bias, norm_weight,
        positions, eps, groups, norm_groups,
    )  # fmt: skip
