"""The mixer by the ops it consists of; formulas in `reference`."""

from __future__ import annotations

from torch import Tensor

from nlrl.kernels.causal_conv1d.eager import causal_conv1d
from nlrl.kernels.mamba2_mixer.reference import composed, rms_norm_of_gated
from nlrl.kernels.ssd.eager import ssd
from nlrl.kernels.ssd.reference import CHUNK


def mamba2_mixer(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    A_log: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    position_ids: Tensor,
    eps: float,
    groups: int = 1,
    norm_groups: int = 1,
    window: Tensor | None = None,
    state: Tensor | None = None,
    chunk: int = CHUNK,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.mamba2_mixer`."""
    return composed(
        causal_conv1d, ssd, rms_norm_of_gated,
        projected, conv_weight, conv_bias, A_log, D, dt_bias, norm_weight, position_ids, eps, groups,
        norm_groups, window, state, chunk, overwrite,
    )  # fmt: skip


def compiled(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    A_log: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    position_ids: Tensor,
    eps: float,
    groups: int = 1,
    norm_groups: int = 1,
    window: Tensor | None = None,
    state: Tensor | None = None,
    chunk: int = CHUNK,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.mamba2_mixer`. What a compiler gets: it fuses what stands between the ops, which stay nodes."""
    from nlrl import kernels

    return composed(
        kernels.causal_conv1d, kernels.ssd, rms_norm_of_gated,
        projected, conv_weight, conv_bias, A_log, D, dt_bias, norm_weight, position_ids, eps, groups,
        norm_groups, window, state, chunk, overwrite,
    )  # fmt: skip
