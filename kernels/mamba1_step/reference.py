"""One token of a Mamba-1 mixer between its matrices, in plain PyTorch (arXiv 2312.00752, section 3.4, and its code; the
norms of step, B and C are Jamba's, arXiv 2403.19887): convolution, low-rank maps, recurrence and gate.

    u = silu(conv(x, window))              [d, B, C] = X u, each divided by its root mean square, if it has a norm
    delta = softplus(W d + bias)           h <- exp(delta A) h + delta u B'
    y = (h C + D u) silu(gate)

For decoding: there are no gradients, and window and state are written over. A row with c channels and N states reads
and writes 4 c N bytes of state each; X and W, 2 (2 rank + 2 N) c bytes in bfloat16, are read once for all rows.
"""

from __future__ import annotations

from torch import Tensor

from nlrl.kernels.causal_conv1d.reference import causal_conv1d
from nlrl.kernels.mamba1_mixer import reference as mixer
from nlrl.kernels.selective_scan.reference import selective_scan


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
    """
    Args:
        x, gate: `(rows, channels)`, what the first matrix made of the token.
        window: `(rows, K-1, channels)`, inputs of the convolution before the token; the new one is written over it.
        state: `(rows, channels, N)`; the same.
        conv_weight: `(channels, K)`; conv_bias: `(channels,)` or None.
        x_proj: `(rank + 2 N, channels)`, X; dt_norm: `(rank,)`; B_norm, C_norm: `(N,)`: scales; None: no such norm.
        dt_proj: `(channels, rank)`, W; dt_bias, D: `(channels,)`.
        A_log: `(channels, N)`; A is minus its exponential.
        positions: `(rows,)` long; 0 begins a document, whatever the row held; -1 is padding, which changes nothing, and
            whose result is noise, but finite.
        eps: of the norms.
        first_window: `(K-1, channels)`; first_state: `(channels, N)`: what every document begins from; None: zeros.
    Returns: y, `(rows, channels)`, of the dtype of x. Sums are in float32 at least.
    """
    return composed(
        causal_conv1d, selective_scan, x, gate, window, state, conv_weight, conv_bias, x_proj, dt_norm, B_norm,
        C_norm, dt_proj, dt_bias, A_log, D, positions, eps, first_window, first_state,
    )  # fmt: skip


def composed(
    convolve, recur, x, gate, window, state, conv_weight, conv_bias, x_proj, dt_norm, B_norm,
    C_norm, dt_proj, dt_bias, A_log, D, positions, eps, first_window, first_state,
) -> Tensor:  # fmt: skip
    """The step, by a convolution and a recurrence with the signatures of `causal_conv1d` and `selective_scan`."""
    y, after, h = mixer.composed(
        convolve, recur, x[:, None], gate[:, None], conv_weight, conv_bias, x_proj, dt_norm, B_norm, C_norm, dt_proj,
        dt_bias, A_log, D, positions[:, None], eps, window, state, first_window, first_state,
    )  # fmt: skip
    window.copy_(after)
    state.copy_(h)
    return y[:, 0]
