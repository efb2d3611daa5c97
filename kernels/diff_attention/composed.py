"""Differential attention by PyTorch's fused attention, called for each map, with all the rest in one pass of ours.

PyTorch's programs for a Hopper (cuDNN) multiply faster than Triton's, but make dP and dV for each map: 28 d FLOPs a
pair in the backward pass for the 20 d that are needed. One launch behind them forward (reads O1 and O2, writes y), one
before them backward (reads dy, O1 and O2; writes dO1 = dO, dO2 = -lambda dO and parts of dlambda and dw).
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nlrl.kernels.attention_launch import block_of
from nlrl.kernels.attention_tiles import load_tile, store_tile

VALUES = 4096
"""Of a tile."""


@triton.jit
def _difference(o1_ptr, o2_ptr, lambda_, row, rows, W: tl.constexpr, block: tl.constexpr):
    o1 = load_tile(o1_ptr, row, W, rows, W, block, True).to(tl.float32)
    o2 = load_tile(o2_ptr, row, W, rows, W, block, True).to(tl.float32)
    return o1 - lambda_ * o2, o2


@triton.jit(do_not_specialize=["rows"])
def subtract(
    o1_ptr, o2_ptr, lambda_ptr, weight_ptr, y_ptr, rows, output_scale, eps,
    W: tl.constexpr, block: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile), tl.arange(0, block)
    o, _ = _difference(o1_ptr, o2_ptr, tl.load(lambda_ptr), row, rows, W, block)
    weight = tl.load(weight_ptr + column, mask=column < W, other=0.0) * output_scale
    norm = tl.rsqrt(tl.sum(o * o, 1) / W + eps)
    store_tile(y_ptr, row, W, rows, o * norm[:, None] * weight[None, :], W, block)


@triton.jit(do_not_specialize=["rows"])
def part(
    dy_ptr, o1_ptr, o2_ptr, lambda_ptr, weight_ptr, do1_ptr, do2_ptr, dlambda_ptr, dweight_ptr, rows, output_scale, eps,
    W: tl.constexpr, block: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile), tl.arange(0, block)
    lambda_ = tl.load(lambda_ptr)
    o, o2 = _difference(o1_ptr, o2_ptr, lambda_, row, rows, W, block)
    dy = load_tile(dy_ptr, row, W, rows, W, block, True).to(tl.float32) * output_scale
    weight = tl.load(weight_ptr + column, mask=column < W, other=0.0)
    norm = tl.rsqrt(tl.sum(o * o, 1) / W + eps)[:, None]
    n, g = o * norm, dy * weight[None, :]
    do = norm * (g - n * (tl.sum(g * n, 1) / W)[:, None])
    store_tile(do1_ptr, row, W, rows, do, W, block)
    store_tile(do2_ptr, row, W, rows, -lambda_ * do, W, block)
    tl.store(dlambda_ptr + tl.program_id(0), -tl.sum(tl.sum(do * o2, 1), 0))
    tl.store(dweight_ptr + tl.program_id(0) * W + column, tl.sum(dy * n, 0), mask=column < W)


class NormedDifference(torch.autograd.Function):
    """Of each map's outputs `(batch, time, heads, 2 d)`, without gaps; lambda and weight in float32."""

    @staticmethod
    def forward(ctx, o1: Tensor, o2: Tensor, lambda_: Tensor, weight: Tensor, output_scale: float, eps: float):
        ctx.save_for_backward(o1, o2, lambda_, weight)
        ctx.numbers = output_scale, eps
        y, sizes = torch.empty_like(o1), _sizes(o1)
        rows = o1.numel() // o1.shape[3]
        with torch.cuda.device_of(o1):
            subtract[(triton.cdiv(rows, sizes["tile"]),)](
                o1, o2, lambda_, weight, y, rows, output_scale, eps, **sizes, num_warps=8
            )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        o1, o2, lambda_, weight = ctx.saved_tensors
        do1, do2, sizes = torch.empty_like(o1), torch.empty_like(o2), _sizes(o1)
        rows = o1.numel() // o1.shape[3]
        programs = triton.cdiv(rows, sizes["tile"])
        dlambda, dweight = lambda_.new_empty(programs), weight.new_empty(programs, len(weight))
        with torch.cuda.device_of(o1):
            part[(programs,)](
                dy.contiguous(), o1, o2, lambda_, weight, do1, do2, dlambda, dweight, rows, *ctx.numbers, **sizes,
                num_warps=8,
            )  # fmt: skip
        return do1, do2, dlambda.sum(), dweight.sum(0), None, None


def _sizes(o: Tensor) -> dict[str, int]:
    block = block_of(o.shape[3])
    return {"W": o.shape[3], "block": block, "tile": max(1, VALUES // block)}


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
    """See `reference.diff_attention`; one document a row."""
    # Parts of an unbound tensor have one gradient, made in one pass; of slices each has its own, full of zeros.
    q, k = (each.to(query.dtype).unflatten(2, (-1, 2)).unbind(3) for each in (query, key))
    v = value.to(query.dtype).transpose(1, 2)
    o1, o2 = (
        F.scaled_dot_product_attention(
            q[i].transpose(1, 2), k[i].transpose(1, 2), v, is_causal=True, enable_gqa=q[i].shape[2] != v.shape[1]
        )
        .transpose(1, 2)
        .contiguous()
        for i in (0, 1)
    )
    return NormedDifference.apply(o1, o2, lambda_.float(), weight.float().contiguous(), output_scale, eps)


def fits(query, key, value, lambda_, weight, output_scale=1.0, eps=1e-5, starts=None) -> bool:
    """Documents would need a mask, with which PyTorch's fast programs do not run."""
    exact = torch.float64 in (lambda_.dtype, weight.dtype)
    return starts is None and not exact and query.numel() > 0 and query.dtype in (torch.float16, torch.bfloat16)
