"""A Mamba-2 mixer between its matrices for CUDA, in three programs: convolution with silu of x, B and C together, the
recurrence with the skip D, and the norm of the gated output.

The gate is in the norm, not behind the recurrence: the norm needs all heads of a token, so g would be written and read
once more by itself; gated there, y is, in its stead, and z is read once either way. Kept for the backward are the
projection, the convolved x, B and C, and y; what silu is taken of, g and its norm are made again.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from nlrl.kernels.causal_conv1d.triton import causal_conv1d
from nlrl.kernels.mamba2_mixer.eager import mamba2_mixer as eager
from nlrl.kernels.mamba2_mixer.reference import composed
from nlrl.kernels.mamba2_mixer.triton_norm import rms_norm_of_gated
from nlrl.kernels.ssd.reference import CHUNK
from nlrl.kernels.ssd.triton import ssd

_convolve = partial(causal_conv1d, silu=True)


def _as_it_is(values: Tensor) -> Tensor:
    return values


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
    """See `reference.mamba2_mixer`; `eager` takes float64."""
    given = (projected, conv_weight, A_log, D, dt_bias, norm_weight, state)
    if any(tensor is not None and tensor.dtype == torch.float64 for tensor in given):
        return eager(
            projected, conv_weight, conv_bias, A_log, D, dt_bias, norm_weight, position_ids, eps, groups, norm_groups,
            window, state, chunk, overwrite,
        )  # fmt: skip
    return composed(
        _convolve, ssd, rms_norm_of_gated,
        projected, conv_weight, conv_bias, A_log, D, dt_bias, norm_weight, position_ids, eps, groups,
        norm_groups, window, state, chunk, overwrite,
        activate=_as_it_is,
    )  # fmt: skip
