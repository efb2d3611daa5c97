"""A Mamba-2 mixer between its two matrices, in plain PyTorch (arXiv 2405.21060, section 7): convolution, recurrence,
gate and norm.

    [z, u, d] = what the first matrix made of a token            [x, B, C] = silu(conv(u))
    dt = softplus(d + bias)                                      S[t] = exp(dt[t] A) S[t-1] + dt[t] x[t] B[t]'
    g = (S C + D x) silu(z)                                      y = w g / rms(g)

The convolution and the recurrence are those of `causal_conv1d` and `ssd`, where their formulas stand.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nlrl.kernels.causal_conv1d.reference import causal_conv1d
from nlrl.kernels.ssd.reference import CHUNK, ssd


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
    """
    Args:
        projected: `(batch, time, heads * head_dim + conv_size + heads)`: z, u and d of each token.
        conv_weight: `(conv_size, K)`; conv_bias: `(conv_size,)` or None. conv_size is heads * head_dim + 2 * groups *
            state_size: x, B and C.
        A_log, D, dt_bias: `(heads,)`; A is minus the exponential of the first.
        norm_weight: `(heads * head_dim,)`; each of norm_groups parts of g is divided by a root mean square of its own.
        position_ids: `(batch, time)` long, from 0 in each document; -1 is padding, which leaves no trace and whose
            output is noise, but finite.
        window: `(batch, K-1, conv_size)`, inputs of the convolution before the call; state: `(batch, heads, head_dim,
            state_size)`; None: nothing came before.
        chunk: tokens of a chunk of `ssd`; changes rounding only.
        overwrite: the new window and state are written over those given, which are returned. Not for training.
    Returns: y, `(batch, time, heads * head_dim)`, of the dtype of norm_weight; the new window; and the new state. Sums
        are in float32 at least.
    """
    return composed(
        causal_conv1d, ssd, rms_norm_of_gated,
        projected, conv_weight, conv_bias, A_log, D, dt_bias, norm_weight, position_ids, eps, groups,
        norm_groups, window, state, chunk, overwrite,
    )  # fmt: skip


def composed(
    convolve: Callable, recur: Callable, norm: Callable, projected, conv_weight, conv_bias, A_log, D, dt_bias,
    norm_weight, position_ids, eps, groups, norm_groups, window, state, chunk, overwrite, activate: Callable = F.silu,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The mixer, by a convolution (whose outputs `activate` takes), a recurrence and a norm with the signatures of
    `causal_conv1d`, `ssd` and `rms_norm_of_gated`."""
    heads, inner = len(A_log), len(norm_weight)
    z, mixed, dt = projected.split((inner, len(conv_weight), heads), -1)
    mixed, after = convolve(mixed, conv_weight, conv_bias, position_ids, window)
    if overwrite and window is not None:
        after = window.copy_(after)
    shared = (len(conv_weight) - inner) // 2
    x, B, C = activate(mixed).split((inner, shared, shared), -1)
    x, B, C = x.unflatten(-1, (heads, -1)), B.unflatten(-1, (groups, -1)), C.unflatten(-1, (groups, -1))
    wide = torch.promote_types(projected.dtype, torch.float32)
    dt = F.softplus(dt.to(wide) + dt_bias.to(wide))
    A = -A_log.to(wide).exp()
    overwrite = overwrite and state is not None
    y, state = recur(x, dt, A, B, C, position_ids, state, D.to(wide), chunk, overwrite=overwrite)
    return norm(y.flatten(-2), z, norm_weight, eps, norm_groups), after, state  # pyright: ignore[reportReturnType]


def rms_norm_of_gated(y: Tensor, z: Tensor, weight: Tensor, eps: float, groups: int) -> Tensor:
    """y silu(z), `(..., width)`, over the root mean square of each of its parts, times weight, of whose dtype it is."""
    wide = torch.promote_types(y.dtype, torch.float32)
    g = (y.to(wide) * F.silu(z.to(wide))).unflatten(-1, (groups, -1))
    g = g * (g.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (g.flatten(-2) * weight).to(weight.dtype)
