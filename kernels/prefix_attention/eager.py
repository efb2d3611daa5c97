"""Attention behind a prefix by PyTorch's fused attention with a mask; formulas in `reference`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nlrl.kernels.prefix_attention.reference import joined, visible


def prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor | None = None,
    prefix_value: Tensor | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    """See `reference.prefix_attention`."""
    q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    mask = None if starts is None and prefix_key is None else visible(starts, query)
    if prefix_key is not None and prefix_value is not None:
        k, v = joined(prefix_key.to(k.dtype), k), joined(prefix_value.to(v.dtype), v)
        mask = F.pad(mask, (prefix_key.shape[1], 0), value=True)  # pyright: ignore[reportArgumentType]
    return masked_attention(q, k, v, mask).transpose(1, 2)


def masked_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention of `(batch, heads, time, width)`, scores divided by the root of the query's width.

    Args: mask: bool `(batch or 1, 1, time, keys)`, True = may attend. None: causal.
    Returns: `(batch, heads, time, width of a value)`.
    """
    copies, widths = query.shape[1] // keys.shape[1], (query.shape[-1], values.shape[-1])
    keys, values = keys.repeat_interleave(copies, 1), values.repeat_interleave(copies, 1)
    if not query.is_cuda:  # the CPU's fused kernel, which keeps no scores, takes keys and values of one width only
        query, keys, values = (F.pad(part, (0, max(widths) - part.shape[-1])) for part in (query, keys, values))
    settings = {"is_causal": mask is None, "scale": widths[0] ** -0.5}
    return F.scaled_dot_product_attention(query, keys, values, mask, **settings)[..., : widths[1]]
