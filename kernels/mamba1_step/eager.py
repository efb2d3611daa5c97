"""The step by the ops that a longer text goes through; formulas in `reference`."""

from __future__ import annotations

from torch import Tensor

from nlrl.kernels.causal_conv1d.eager import causal_conv1d
from nlrl.kernels.mamba1_step.reference import composed
from nlrl.kernels.selective_scan.eager import selective_scan


def mamba1_step(
    x: Tensor,
    gate: Tensor,
    window: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_norm: Tensor | None,
    B_norm: Tensor | None,
    C_norm: Tensor | None,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    positions: Tensor,
    eps: float = 1e-6,
    first_window: Tensor | None = None,
    first_state: Tensor | None = None,
) -> Tensor:
    """See `reference.mamba1_step`."""
    return composed(
        causal_conv1d, selective_scan, x, gate, window, state, conv_weight, conv_bias, x_proj, dt_norm, B_norm,
        C_norm, dt_proj, dt_bias, A_log, D, positions, eps, first_window, first_state,
    )  # fmt: skip
