"""PyTorch's attention in the places of ours: calls of its fused and its flexible kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Inputs = dict[str, Any]


def maps(inputs: Inputs) -> Inputs:
    """Each map's queries and keys side by side, `(batch, heads, time, width)`."""
    parts = {"query": ("q1", "q2"), "key": ("k1", "k2")}
    cut = {
        name: inputs[whole][:, :, which::2].transpose(1, 2).contiguous()
        for whole, names in parts.items()
        for which, name in enumerate(names)
    }
    kept = {name: inputs[name] for name in ("lambda_", "weight", "output_scale")}
    return cut | {"v": inputs["value"].transpose(1, 2).contiguous()} | kept


def joined_maps(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    def joined(first: str, second: str) -> Tensor:
        return torch.stack((gradients[first], gradients[second]), 2).flatten(1, 2).transpose(1, 2)

    whole = {"query": joined("q1", "q2"), "key": joined("k1", "k2"), "value": gradients["v"].transpose(1, 2)}
    return whole | {name: gradients[name] for name in ("lambda_", "weight")}


def _two_calls(attention: Callable, q1, q2, k1, k2, v, lambda_, weight, output_scale) -> Tensor:
    first, second = (attention(q, k, v).transpose(1, 2) for q, k in ((q1, k1), (q2, k2)))
    return _subtracted(first, second, lambda_, weight, output_scale)


@cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=False)


def _subtracted(first: Tensor, second: Tensor, lambda_: Tensor, weight: Tensor, output_scale: float) -> Tensor:
    """What follows attention, in one pass each way: ours, as a compiler takes seconds for each size and mode."""
    if first.is_cuda:
        from nlrl.kernels.diff_attention.composed import NormedDifference

        return NormedDifference.apply(first.contiguous(), second.contiguous(), lambda_, weight, output_scale, 1e-5)
    y = first.float() - lambda_ * second.float()
    return (y * (y.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * (weight * output_scale)).to(first.dtype)


def compiled_soon(shape: dict[str, Any]) -> bool:
    """Of what flexible attention can do: each size costs it two compilations, so it gets one of each width and mask."""
    return not shape.get("documents") and (shape["time"] <= 2048 or shape.get("window") == 0)


def two_sdpa(**inputs: Any) -> Tensor:
    """Which of torch's own kernels does it, flash or cuDNN, is torch's choice."""
    return _two_calls(partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True), **inputs)


def two_flex(**inputs: Any) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    mask = _causal(inputs["q1"].shape[2], inputs["q1"].device)
    return _two_calls(partial(_compiled(flex_attention), block_mask=mask, enable_gqa=True), **inputs)


@cache
def _causal(time: int, device: torch.device):
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda b, h, q, k: q >= k, None, None, time, time, device=device)  # pyright: ignore


def behind_prefix(inputs: Inputs) -> Inputs:
    """The prefix before every row's own keys and values, `(batch, heads, keys, width)`."""
    query, batch = inputs["query"], len(inputs["query"])

    def joined(prefix: Tensor, own: Tensor) -> Tensor:
        return torch.cat((prefix.expand(batch, -1, -1, -1), own.transpose(1, 2)), 2).contiguous()

    time, starts = query.shape[1], inputs["starts"]
    window = time if starts is None else time - 1 - int(starts[0, -1])
    return {
        "q": query.transpose(1, 2).contiguous(), "k": joined(inputs["prefix_key"], inputs["key"]),
        "v": joined(inputs["prefix_value"], inputs["value"]), "prefix": inputs["prefix_key"].shape[1], "window": window,
    }  # fmt: skip


def prefix_apart(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """The last keys are as many as there are queries."""
    found, time = {"query": gradients["q"].transpose(1, 2)}, gradients["q"].shape[2]
    for name, part in (("key", gradients["k"]), ("value", gradients["v"])):
        found |= {name: part[:, :, -time:].transpose(1, 2), f"prefix_{name}": part[:, :, :-time].sum(0)}
    return found


def prefix_flex(q: Tensor, k: Tensor, v: Tensor, prefix: int, window: int) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    mask = _windowed(q.shape[2], prefix, window, q.device)
    return _compiled(flex_attention)(q, k, v, block_mask=mask, enable_gqa=True).transpose(1, 2)


@cache
def _windowed(time: int, prefix: int, window: int, device: torch.device):
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b, h, q, k):
        return (k < prefix) | ((q >= k - prefix) & (q - (k - prefix) <= window))

    return create_block_mask(seen, None, None, time, prefix + time, device=device)  # pyright: ignore
