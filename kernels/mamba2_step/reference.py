"""One token of a Mamba-2 mixer between its matrices, in plain PyTorch (arXiv 2405.21060, section 7): convolution,
recurrence, gate and norm.

    [z, u, d] = what the first matrix made of the token          u~ = silu(conv(u, window))
    [x, B, C] = u~            dt = softplus(d + bias)            S <- exp(dt A) S + dt x B'
    g = (S C + D x) silu(z)                                      y = w g / rms(g)

For decoding: there are no gradients, and window and state are written over. A row with h heads of P channels and N
states reads and writes 4 h P N bytes of state each, beside which all else is small.
"""

from __future__ import annotations

from torch import Tensor

from nlrl.kernels.causal_conv1d.reference import causal_conv1d
from nlrl.kernels.mamba2_mixer import reference as mixer
from nlrl.kernels.ssd.reference import CHUNK, ssd


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
    """
    Args:
        projected: `(rows, heads * head_dim + conv_size + heads)`: z, u and d of each row.
        window: `(rows, K-1, conv_size)`, inputs of the convolution before the token; the new one is written over it.
        state: `(rows, heads, head_dim, state_size)`; the same.
        conv_weight: `(conv_size, K)`; conv_bias: `(conv_size,)` or None. conv_size is heads * head_dim + 2 * groups *
            state_size: x, B and C.
        A_log, D, dt_bias: `(heads,)`; A is minus the exponential of the first.
        norm_weight: `(heads * head_dim,)`; each of norm_groups parts of g is divided by a root mean square of its own.
        positions: `(rows,)` long; 0 begins a document, whatever the row held; -1 is padding, which changes nothing, and
            whose result is noise, but finite.
    Returns: y, `(rows, heads * head_dim)`, of the dtype of norm_weight. Sums are in float32 at least.
    """
    return composed(
        causal_conv1d, ssd, projected, window, state, conv_weight, conv_bias, A_log, D, dt_bias, norm_weight,
        positions, eps, groups, norm_groups,
    )  # fmt: skip


def composed(
    convolve, recur, projected, window, state, conv_weight, conv_bias, A_log, D, dt_bias, norm_weight, positions, eps,
    groups, norm_groups,
) -> Tensor:  # fmt: skip
    """The step, by a convolution and a recurrence with the signatures of `causal_conv1d` and `ssd`."""
    y, _window, _state = mixer.composed(
        convolve, recur, mixer.rms_norm_of_gated, projected[:, None], conv_weight, conv_bias, A_log, D, dt_bias,
        norm_weight, positions[:, None], eps, groups, norm_groups, window, state, CHUNK, True,
    )  # fmt: skip
    return y[:, 0]
