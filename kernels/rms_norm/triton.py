"""RMSNorm for CUDA: a program holds whole rows in registers, so every tensor is read and written once.

The gradient of the weight is a sum over all rows. Each program sums the rows it owns, a fixed set, and the partial sums
are added in a fixed order afterwards: equal inputs give equal bits.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nlrl.kernels.rms_norm.eager import rms_norm as eager

VALUES_PER_PROGRAM = 4096
LARGEST_WIDTH = 16384
"""Wider rows do not fit into a program's registers."""
PROGRAMS_PER_PROCESSOR = 4
"""Of the backward pass: enough to hide memory latency, few enough to keep the partial sums small."""


@triton.jit(do_not_specialize=["rows"])
def _forward(
    x_ptr, residual_ptr, weight_ptr, y_ptr, s_ptr, scale_ptr, rows, width, eps,
    added: tl.constexpr, tile: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * tile + tl.arange(0, tile)
    column = tl.arange(0, block)
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    inside = (row < rows)[:, None] & (column < width)[None, :]
    s = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if added:
        s += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(s_ptr + at, s.to(s_ptr.dtype.element_ty), mask=inside)
        s = s.to(s_ptr.dtype.element_ty).to(tl.float32)  # as whoever reads it has it
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(s * s, 1) / width + eps)
    tl.store(y_ptr + at, (s * scale[:, None] * weight[None, :]).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(scale_ptr + row, scale, mask=row < rows)


@triton.jit(do_not_specialize=["rows"])
def _backward(
    s_ptr, weight_ptr, scale_ptr, dy_ptr, ds_ptr, dx_ptr, dweight_ptr, rows, width,
    added: tl.constexpr, tile: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, block)
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    dweight = tl.zeros((block,), tl.float32)
    for start in range(tl.program_id(0) * tile, rows, tl.num_programs(0) * tile):
        row = start + tl.arange(0, tile)
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        inside = (row < rows)[:, None] & (column < width)[None, :]
        scale = tl.load(scale_ptr + row, mask=row < rows, other=0.0)[:, None]
        n = tl.load(s_ptr + at, mask=inside, other=0.0).to(tl.float32) * scale
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dweight += tl.sum(dy * n, 0)
        dn = dy * weight
        dx = scale * (dn - n * (tl.sum(dn * n, 1) / width)[:, None])
        if added:
            dx += tl.load(ds_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(dweight_ptr + tl.program_id(0) * width + column, dweight, mask=column < width)


class RMSNorm(torch.autograd.Function):
    """Of rows `(rows, width)`."""

    @staticmethod
    def forward(ctx, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Any:
        rows, width = x.shape
        y, scale = torch.empty_like(x), x.new_empty(rows, dtype=torch.float32)
        s = x if residual is None else torch.empty_like(x)
        launch = _launch(width)
        with torch.cuda.device_of(x):
            _forward[(triton.cdiv(rows, launch["tile"]),)](
                x, x if residual is None else residual, weight, y, s, scale, rows, width, eps,
                added=residual is not None, **launch,
            )  # fmt: skip
        ctx.save_for_backward(s, weight, scale)
        ctx.added = residual is not None
        ctx.set_materialize_grads(False)
        return (y, s) if ctx.added else y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor | None, ds: Tensor | None = None):
        s, weight, scale = ctx.saved_tensors
        rows, width = s.shape
        dy = torch.zeros_like(s) if dy is None else dy.contiguous()
        dx, added = torch.empty_like(s), ds is not None
        ds = dy if ds is None else ds.contiguous()
        dweight = weight.new_empty((min(rows, _programs(s.device)), width), dtype=torch.float32)
        with torch.cuda.device_of(s):
            _backward[(len(dweight),)](
                s, weight, scale, dy, ds, dx, dweight, rows, width,
                added=added, **_launch(width),
            )  # fmt: skip
        return dx, dx if ctx.added else None, dweight.sum(0).to(weight.dtype), None


def _launch(width: int) -> dict[str, int]:
    """Short rows share a program, so that every thread has several values in flight."""
    block = triton.next_power_of_2(width)
    return {"tile": max(1, VALUES_PER_PROGRAM // block), "block": block, "num_warps": 4 if block <= 4096 else 16}


def _programs(device: torch.device) -> int:
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    return PROGRAMS_PER_PROCESSOR * processors


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, residual: Tensor | None = None):
    """See `reference.rms_norm`; `eager` takes float64, rows beyond `LARGEST_WIDTH`, x and residual of two dtypes."""
    mixed = residual is not None and residual.dtype != x.dtype
    if x.dtype == torch.float64 or mixed or not x.numel() or x.shape[-1] > LARGEST_WIDTH:
        return eager(x, weight, eps, residual)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    other = None if residual is None else residual.reshape(rows.shape).contiguous()
    found = RMSNorm.apply(rows, other, weight, eps)
    return found.view(x.shape) if residual is None else tuple(part.view(x.shape) for part in found)
