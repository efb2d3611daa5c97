"""Rotary position embedding (arXiv 2104.09864): pairs of channels turn by an angle proportional to the token's
position."""

from __future__ import annotations

import math

import torch
from torch import Tensor

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
    """Turns x `(batch, time, heads, head_dim)` by `angles`.

    Pairs are (2j, 2j+1) if `interleaved`, as in the paper, else (j, j + head_dim/2), as Hugging Face Llama stores them.
    """
    if torch.compiler.is_compiling():
        return _turn_plainly(x, cos, sin, interleaved)
    return _Rotary.apply(x, cos, sin, interleaved)


def _turn_plainly(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """A compiler writes this as one kernel; run as it stands it would make six tensors, `_turn` makes one."""
    a, b = _pairs(x.to(cos.dtype), interleaved)
    turned = (a * cos - b * sin, b * cos + a * sin)
    y = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return y.to(x.dtype)


class _Rotary(torch.autograd.Function):
    """Its backward is the turn by the opposite angle, so the input need not be kept."""

    @staticmethod
    def forward(ctx, x, cos, sin, interleaved):
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _turn(x, cos, sin, interleaved)

    @staticmethod
    def backward(ctx, grad):
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin, ctx.interleaved), None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    wide = x.to(cos.dtype)
    a, b = _pairs(wide, interleaved)
    y = torch.empty_like(wide, memory_format=torch.contiguous_format)
    new_a, new_b = _pairs(y, interleaved)
    torch.mul(a, cos, out=new_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=new_b).addcmul_(a, sin)
    return y.to(x.dtype)


def _pairs(x: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    if interleaved:
        return x[..., 0::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]
