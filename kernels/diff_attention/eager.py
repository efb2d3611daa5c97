"""Differential attention by PyTorch's fused attention, called for both maps; formulas in `reference`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nlrl.kernels.diff_attention.reference import visible


def diff_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lambda_: Tensor,
    weight: Tensor,
    output_scale: float = 1.0,
    eps: float = 1e-5,
    starts: Tensor | None = None,
) -> Tensor:
    """See `reference.diff_attention`."""
    mask = None if starts is None else visible(starts, query)
    maps = query.transpose(1, 2).unflatten(1, (value.shape[2], -1, 2)).transpose(2, 3)
    first, second = both_maps(maps, key.transpose(1, 2), value.transpose(1, 2), mask)
    y = first.to(lambda_.dtype) - lambda_ * second.to(lambda_.dtype)
    return head_norm(y.flatten(1, 2).transpose(1, 2), weight, output_scale, eps).to(query.dtype)


def head_norm(y: Tensor, weight: Tensor, output_scale: float, eps: float) -> Tensor:
    """RMSNorm of every head, `(..., 2 d)`, times `output_scale`; in the dtype of y."""
    return F.rms_norm(y, y.shape[-1:], weight.to(y.dtype) * output_scale, eps)


def both_maps(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """What each map reads.

    Args:
        query: `(batch, kv_heads, 2, heads of a group, time, d)`.
        keys: `(batch, 2 kv_heads, keys, d)`; values: `(batch, kv_heads, keys, 2 d)`.
        mask: bool `(batch, 1, time, keys)`, True = may attend. None: causal.
    Returns: two of `(batch, kv_heads, heads of a group, time, 2 d)`.
    """
    settings = {"is_causal": mask is None, "scale": query.shape[-1] ** -0.5}
    if query.shape[3] > 1:  # asked here: a compiler has symbols for sizes, which are no settings
        settings["enable_gqa"] = True
    if query.is_cuda:
        maps = [
            F.scaled_dot_product_attention(query[:, :, i].flatten(1, 2), keys[:, i::2], values, mask, **settings)
            for i in (0, 1)
        ]
        return maps[0].unflatten(1, (values.shape[1], -1)), maps[1].unflatten(1, (values.shape[1], -1))
    # A CPU's fused kernel wants keys as wide as values. Zeros change no score and cost less than to keep the maps.
    wider = (0, values.shape[-1] - keys.shape[-1])
    query_, keys = F.pad(query, wider).flatten(1, 3), F.pad(keys, wider)
    y = F.scaled_dot_product_attention(query_, keys, values.repeat_interleave(2, 1), mask, **settings)
    first, second = y.unflatten(1, query.shape[1:4]).unbind(2)
    return first, second
