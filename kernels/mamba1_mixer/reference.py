"""A Mamba-1 mixer between its two matrices, in plain PyTorch (arXiv 2312.00752, section 3.4, and its code; the norms of
step, B and C are Jamba's, arXiv 2403.19887): convolution, low-rank maps, recurrence and gate.

    u = silu(conv(x))                   [d, B, C] = X u, each divided by its root mean square, if it has a norm
    delta = softplus(W d + bias)        h[t] = exp(delta[t] A) h[t-1] + delta[t] u[t] B[t]'
    y = (h C + D u) silu(gate)

The convolution and the recurrence are those of `causal_conv1d` and `selective_scan`, where their formulas stand.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nlrl.kernels.causal_conv1d.reference import causal_conv1d
from nlrl.kernels.selective_scan.reference import selective_scan


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
    """
    Args:
        x, gate: `(batch, time, channels)`, what the first matrix made of the tokens.
        conv_weight: `(channels, K)`; conv_bias: `(channels,)` or None.
        x_proj: `(rank + 2 N, channels)`, X; dt_norm: `(rank,)`; B_norm, C_norm: `(N,)`: scales; None: no such norm.
        dt_proj: `(channels, rank)`, W; dt_bias, D: `(channels,)`.
        A_log: `(channels, N)`; A is minus its exponential.
        position_ids: `(batch, time)` long, from 0 in each document; -1 is padding, which leaves no trace and whose
            output is noise, but finite.
        eps: of the norms.
        window: `(batch, K-1, channels)`, inputs of the convolution before this call; state: `(batch, channels, N)`;
            None: nothing came before.
        first_window: `(K-1, channels)`; first_state: `(channels, N)`: what every document begins from; None: zeros.
    Returns: y, of the shape and dtype of x; the new window; and the new state, in float32 at least, as are sums.
    """
    return composed(
        causal_conv1d, selective_scan,
        x, gate, conv_weight, conv_bias, x_proj, dt_norm, B_norm, C_norm, dt_proj, dt_bias, A_log, D, position_ids, eps,
        window, state, first_window, first_state,
    )  # fmt: skip


def composed(
    convolve: Callable, recur: Callable, x, gate, conv_weight, conv_bias, x_proj, dt_norm, B_norm, C_norm, dt_proj,
    dt_bias, A_log, D, position_ids, eps, window, state, first_window, first_state,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The mixer, by a convolution and a recurrence with the signatures of `causal_conv1d` and `selective_scan`."""
    u, window = convolve(x, conv_weight, conv_bias, position_ids, window, first_window)
    u = F.silu(u)
    d, B, C = projected(u, x_proj, (dt_norm, B_norm, C_norm), dt_proj.shape[1], eps)
    wide = torch.promote_types(x.dtype, torch.float32)
    delta = F.softplus(F.linear(d, dt_proj).to(wide) + dt_bias)
    y, state = recur(u, delta, -A_log.to(wide).exp(), B, C, D, position_ids, state, first_state)
    return y * F.silu(gate), window, state  # pyright: ignore[reportReturnType]


def projected(u: Tensor, x_proj: Tensor, norms: tuple[Tensor | None, ...], rank: int, eps: float) -> list[Tensor]:
    """d, B and C."""
    states = (len(x_proj) - rank) // 2
    parts = F.linear(u, x_proj).split((rank, states, states), -1)
    scales = zip(parts, norms, strict=True)
    return [part if scale is None else F.rms_norm(part, scale.shape, scale, eps) for part, scale in scales]
