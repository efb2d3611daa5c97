"""Version 2 by PyTorch's fused attention over twice the heads, with gate and subtraction in one pass of ours.

PyTorch's programs for a Hopper (cuDNN, flash) multiply faster than Triton's, but make dP for each map, and read and
write both maps' outputs: 20 d FLOPs a pair in the backward pass for the 16 d that are needed. One launch behind them
forward (reads O1 and O2, writes y), one before them backward (reads dy and O2, writes dO1 = dy, dO2 = -g dy and dg).
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


@triton.jit(do_not_specialize=["rows"])
def subtract(both_ptr, gate_ptr, y_ptr, rows, D: tl.constexpr, block_d: tl.constexpr, tile: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    first = load_tile(both_ptr, row, 2 * D, rows, D, block_d, True).to(tl.float32)
    second = load_tile(both_ptr + D, row, 2 * D, rows, D, block_d, True).to(tl.float32)
    gate = tl.load(gate_ptr + row, mask=row < rows, other=0.0).to(tl.float32)
    store_tile(y_ptr, row, D, rows, first - gate[:, None] * second, D, block_d)


@triton.jit(do_not_specialize=["rows"])
def part(
    dy_ptr, both_ptr, gate_ptr, dboth_ptr, dgate_ptr, rows, D: tl.constexpr, block_d: tl.constexpr, tile: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    dy = load_tile(dy_ptr, row, D, rows, D, block_d, True).to(tl.float32)
    second = load_tile(both_ptr + D, row, 2 * D, rows, D, block_d, True).to(tl.float32)
    gate = tl.load(gate_ptr + row, mask=row < rows, other=0.0).to(tl.float32)
    store_tile(dboth_ptr, row, 2 * D, rows, dy, D, block_d)
    store_tile(dboth_ptr + D, row, 2 * D, rows, -gate[:, None] * dy, D, block_d)
    tl.store(dgate_ptr + row, -tl.sum(dy * second, 1), mask=row < rows)


class GatedDifference(torch.autograd.Function):
    """Of both maps' outputs `(batch, time, 2 heads, d)` and the gate `(batch, time, heads)`, both without gaps."""

    @staticmethod
    def forward(ctx, both: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(both, gate)
        y = both.new_empty((*gate.shape, both.shape[3]))
        with torch.cuda.device_of(both):
            subtract[_grid(gate, both)](both, gate, y, gate.numel(), **_sizes(both))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        both, gate = ctx.saved_tensors
        dboth, dgate = torch.empty_like(both), torch.empty_like(gate)
        with torch.cuda.device_of(both):
            part[_grid(gate, both)](dy.contiguous(), both, gate, dboth, dgate, gate.numel(), **_sizes(both))
        return dboth, dgate


def _sizes(both: Tensor) -> dict[str, int]:
    block_d = block_of(both.shape[3])
    return {"D": both.shape[3], "block_d": block_d, "tile": max(1, VALUES // block_d), "num_warps": 4}


def _grid(gate: Tensor, both: Tensor) -> tuple[int]:
    return (triton.cdiv(gate.numel(), _sizes(both)["tile"]),)


def diff_attention_v2(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, starts: Tensor | None = None) -> Tensor:
    """See `reference.diff_attention_v2`; one document a row."""
    q, k, v = (part.to(query.dtype).transpose(1, 2) for part in (query, key, value))
    both = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    return GatedDifference.apply(both.transpose(1, 2).contiguous(), gate.contiguous())


def fits(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, starts: Tensor | None = None) -> bool:
    """Documents would need a mask, with which PyTorch's fast programs do not run."""
    return starts is None and query.numel() > 0 and query.dtype in (torch.float16, torch.bfloat16)
