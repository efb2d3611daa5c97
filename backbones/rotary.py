"""Rotary position embedding (arXiv 2104.09864): pairs of channels turn by an angle proportional to the token's
position."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nlrl import kernels

ROPE_TYPES = ("default", "linear", "llama3")


def frequencies(head_dim: int, rope: dict, like: Tensor) -> Tensor:
    """Angle a position, `(head_dim / 2,)`, in the dtype of `like` but float32 at least.

    Computed at every call rather than kept in a buffer, since `model.to(dtype)` would round a buffer.

    Args:
        rope: `rope_theta`, and optionally a `rope_type` of `ROPE_TYPES` with that type's numbers under Hugging Face's
            names.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    turns = rope["rope_theta"] ** (torch.arange(0, head_dim, 2, device=like.device, dtype=dtype) / -head_dim)
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        return turns / rope["factor"]
    if kind == "llama3":
        return _llama3(turns, rope)
    return turns


def _llama3(turns: Tensor, rope: dict) -> Tensor:
    """Slow channels are stretched by `factor`, fast ones kept, those between blended (Llama 3.1 model card)."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns_in_context = turns * (rope["original_max_position_embeddings"] / (2 * math.pi))
    kept = ((turns_in_context - low) / (high - low)).clamp(0, 1)
    return torch.lerp(turns / rope["factor"], turns, kept)


def angles(position_ids: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, `(batch, time, 1, head_dim / 2)`, of positions `(batch, time)` and `frequencies`."""
    angle = (position_ids[:, :, None].to(turns.dtype) * turns)[:, :, None]
    return angle.cos(), angle.sin()


def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turns x `(batch, time, heads, head_dim)` by `angles`; see `kernels.rotary`."""
    return kernels.rotary(x, cos, sin, interleaved)
