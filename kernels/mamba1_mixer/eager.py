"""The mixer by the ops it consists of; formulas in `reference`."""

from __future__ import annotations

from torch import Tensor

from nlrl.kernels.causal_conv1d.eager import causal_conv1d
from nlrl.kernels.mamba1_mixer.reference import composed
from nlrl.kernels.selective_scan.eager import selective_scan


def mamba1_mixer(
    x: Tensor,
    gate: Tensor,
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
    position_ids: Tensor,
    eps: float = 1e-6,
    window: Tensor | None = None,
    state: Tensor | None = None,
    first_window: Tensor | None = None,
    first_state: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.mamba1_mixer`."""
    return composed(
        causal_conv1d, selective_scan,
        x, gate, conv_weight, conv_bias, x_proj, dt_norm, B_norm, C_norm, dt_proj, dt_bias, A_log, D, position_ids, eps,
        window, state, first_window, first_state,
    )  # fmt: skip


def compiled(
    x: Tensor,
    gate: Tensor,
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
    position_ids: Tensor,
    eps: float = 1e-6,
    window: Tensor | None = None,
    state: Tensor | None = None,
    first_window: Tensor | None = None,
    first_state: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.mamba1_mixer`. What a compiler gets: it fuses what stands between the ops, which stay nodes."""
    from nlrl import kernels

    return composed(
        kernels.causal_conv1d, kernels.selective_scan,
        x, gate, conv_weight, conv_bias, x_proj, dt_norm, B_norm, C_norm, dt_proj, dt_bias, A_log, D, position_ids, eps,
        window, state, first_window, first_state,
    )  # fmt: skip
