"""Depthwise causal convolution in plain PyTorch.

For the token at position p of its document, and channel c,

    y[p] = bias + sum over j = 0 .. K-1 of weight[K-1-j] * x[p-j]

so `weight[:, K-1]` belongs to the token itself. x of a negative position is `initial` (the same for every document) or
zero: documents of one row do not see each other.
"""

from __future__ import annotations

import torch
from torch import Tensor


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position_ids: Tensor,
    window: Tensor | None = None,
    initial: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolves each channel with its own K taps.

    Args:
        x: `(batch, time, channels)`.
        weight: `(channels, K)`; bias: `(channels,)` or None.
        position_ids: `(batch, time)` long, from 0 in each document; -1 is padding, behind a row's tokens or before
            position 0. Its output is noise, but finite.
        window: `(batch, K-1, channels)`, the inputs before this call, latest last; None: nothing came before.
        initial: `(K-1, channels)`, what every document sees before its position 0; None: zeros.
    Returns: y `(batch, time, channels)`, in the dtype of x, summed in float32 (float64 if an argument is); and the new
        window `(batch, K-1, channels)`: inputs that end with each row's last token, the old ones where it has none.
    """
    inputs = preceded(x, weight, window)
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    y = 0 if bias is None else bias.to(wide)
    for back in range(weight.shape[1]):
        y = y + weight[:, -1 - back].to(wide) * _tap(inputs, initial, position_ids, back, weight.shape[1]).to(wide)
    return y.to(x.dtype), last_inputs(inputs, position_ids)  # pyright: ignore[reportAttributeAccessIssue]


def preceded(x: Tensor, weight: Tensor, window: Tensor | None) -> Tensor:
    """The inputs of a call behind those before it, `(batch, K-1 + time, channels)`."""
    if window is None:
        window = x.new_zeros((x.shape[0], weight.shape[1] - 1, x.shape[2]))
    return torch.cat((window.to(x.dtype), x), 1)


def last_inputs(inputs: Tensor, position_ids: Tensor) -> Tensor:
    """The K-1 inputs that end with each row's last token; inputs: from `preceded`."""
    time = position_ids.shape[1]
    places = torch.arange(1, time + 1, device=inputs.device)
    end = (places * (position_ids >= 0)).amax(1) if time else position_ids.new_zeros(position_ids.shape[0])
    index = end[:, None] + torch.arange(inputs.shape[1] - time, device=inputs.device)
    return inputs.gather(1, index[..., None].expand(-1, -1, inputs.shape[2]))


def _tap(inputs: Tensor, initial: Tensor | None, position_ids: Tensor, back: int, taps: int) -> Tensor:
    """What each token sees `back` places before itself."""
    start = taps - 1 - back
    own = inputs[:, start : start + position_ids.shape[1]]
    if back == 0:
        return own
    if initial is None:
        before = torch.zeros_like(own)
    else:
        before = initial.to(own.dtype)[(position_ids + start).clamp(0, taps - 2)]
    return torch.where((position_ids >= back)[..., None], own, before)
