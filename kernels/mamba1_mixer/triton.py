"""A Mamba-1 mixer between its matrices for CUDA: convolution with silu in one program, the low-rank maps as matrix
products, and a scan that takes softplus, the skip D and the gate in its stride.

A value of a token is read or written 8 times forwards (x, u three times, W d twice, gate, y), where the chain of ops
moves it about 26 times, most of them in float32: as two tensors around silu, six around softplus and three around the
gate. Kept for the backward are x, u, W d and gate; what silu is taken of is made again.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nlrl.kernels.causal_conv1d.triton import causal_conv1d
from nlrl.kernels.mamba1_mixer.eager import mamba1_mixer as eager
from nlrl.kernels.mamba1_mixer.reference import projected
from nlrl.kernels.selective_scan.triton import fits, scan


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
    """See `reference.mamba1_mixer`; `eager` does what the scan does not fit: float64, more than 128 states."""
    if not fits(x, A_log, conv_weight, x_proj, dt_proj, state, first_state):
        return eager(
            x, gate, conv_weight, conv_bias, x_proj, dt_norm, B_norm, C_norm, dt_proj, dt_bias, A_log, D, position_ids,
            eps, window, state, first_window, first_state,
        )  # fmt: skip
    u, window = causal_conv1d(x, conv_weight, conv_bias, position_ids, window, first_window, silu=True)
    d, B, C = projected(u, x_proj, (dt_norm, B_norm, C_norm), dt_proj.shape[1], eps)
    A, raw = -A_log.float().exp(), F.linear(d, dt_proj)
    y, state = scan(u, raw, A, B, C, D, position_ids, state, first_state, gate, dt_bias)
    return y, window, state
