"""Depthwise causal convolution with few passes over memory; formulas in `reference`.

What `initial` adds depends on the position alone, so it is a table of K-1 rows: a small matrix product adds it. The
rest has a backward of its own, which keeps the inputs and no tap.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nlrl.kernels.causal_conv1d.reference import last_inputs, preceded


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position_ids: Tensor,
    window: Tensor | None = None,
    initial: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.causal_conv1d`."""
    inputs = preceded(x, weight, window)
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    y = _Convolution.apply(inputs.to(wide), weight.to(wide), position_ids)
    if bias is not None:
        y = y + bias.to(wide)
    if initial is not None:
        places = torch.arange(weight.shape[1] - 1, device=x.device)
        y = y + (position_ids[..., None] == places).to(wide) @ head(weight.to(wide), initial.to(wide))
    return y.to(x.dtype), last_inputs(inputs, position_ids)


def head(weight: Tensor, initial: Tensor) -> Tensor:
    """What `initial` adds to the output at positions 0 .. K-2, `(K-1, channels)`."""
    taps = weight.shape[1]
    rows = [(weight[:, : taps - 1 - p].T * initial[p:]).sum(0) for p in range(taps - 1)]
    return torch.stack(rows) if rows else initial


class _Convolution(torch.autograd.Function):
    """From inputs `(batch, K-1 + time, channels)` to `(batch, time, channels)`."""

    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor, position_ids: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight, position_ids)
        taps, time = weight.shape[1], position_ids.shape[1]
        y = inputs[:, taps - 1 :] * weight[:, -1]
        for back in range(1, taps):
            start = taps - 1 - back
            own = inputs[:, start : start + time].masked_fill((position_ids < back)[..., None], 0)
            y.addcmul_(own, weight[:, start])
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        inputs, weight, position_ids = ctx.saved_tensors
        taps, time = weight.shape[1], position_ids.shape[1]
        dinputs, dweight = torch.zeros_like(inputs), torch.empty_like(weight)
        for back in range(taps):
            start = taps - 1 - back
            seen = dy if back == 0 else dy.masked_fill((position_ids < back)[..., None], 0)
            dinputs[:, start : start + time].addcmul_(seen, weight[:, start])
            dweight[:, start] = (seen * inputs[:, start : start + time]).sum((0, 1))
        return dinputs, dweight, None
