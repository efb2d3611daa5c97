"""The selective scan of Mamba-1, one token after the other (arXiv 2312.00752, equations 2a and 2b, discretised as its
code does: zero-order hold for A, Euler's rule for B).

For a channel c with its N states n,

    h[t, n] = exp(delta[t] * A[n]) * h[t-1, n] + delta[t] * x[t] * B[t, n]
    y[t]    = sum over n of h[t, n] * C[t, n] + D * x[t]

Before position 0 of a document h is `initial` (the same for every document) or zero, whatever the row held.

With g = dL/dh, which runs backwards,   g[t] = dy[t] * C[t] + exp(delta[t+1] * A) * g[t+1]:

    dx = sum_n g * delta * B + D * dy      dB = sum_c g * delta * x      dC = sum_c dy * h
    d(delta * A) = g * h[t-1] * exp(delta * A)                           dD = sum dy * x
"""

from __future__ import annotations

import torch
from torch import Tensor


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    position_ids: Tensor,
    state: Tensor | None = None,
    initial: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs the recurrence of every channel.

    Args:
        x: `(batch, time, channels)`, the inputs; delta: as x, step sizes, positive (after softplus).
        A: `(channels, N)`, negative. B, C: `(batch, time, N)`. D: `(channels,)`.
        position_ids: `(batch, time)` long, from 0 in each document; -1 is padding, which leaves no trace and whose
            output is noise, but finite.
        state: `(batch, channels, N)` after the tokens before this call; None: zeros.
        initial: `(channels, N)`, the state every document begins from; None: zeros.
    Returns: y `(batch, time, channels)`, in the dtype of x; and the state after each row's last token, in float32
        (float64 if an argument is), as are all sums.
    """
    wide = wide_dtype(x, delta, A)
    like = x.dtype
    x, delta, A, B, C = (tensor.to(wide) for tensor in (x, delta, A, B, C))
    h = x.new_zeros((x.shape[0], *A.shape)) if state is None else state.to(wide)
    begin = torch.zeros_like(A) if initial is None else initial.to(wide)
    y = []
    for t in range(x.shape[1]):
        position = position_ids[:, t, None, None]
        h_new = torch.exp(delta[:, t, :, None] * A) * torch.where(position == 0, begin, h)
        h_new = h_new + (delta[:, t] * x[:, t])[..., None] * B[:, t, None]
        h = torch.where(position >= 0, h_new, h)
        y.append((h * C[:, t, None]).sum(-1))
    return (torch.stack(y, 1) + D.to(wide) * x if y else x).to(like), h


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 if one of them is."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
