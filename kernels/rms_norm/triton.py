"""RMSNorm for CUDA: a program holds whole rows in registers, so every tensor is read and written once.

The gradient of the weight is a sum over all rows. Each program sums the rows it owns, a fixed set, and the partial sums
are added in a fixed order afterwards: equal inputs give equal bits.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nlrl.kernels.launches import choose
from nlrl.kernels.rms_norm.eager import rms_norm as eager

VALUES_PER_PROGRAM = 4096
LARGEST_WIDTH = 16384
"""Wider rows do not fit into a program's registers."""
BACKWARD = (4096, 512, 3, 1)
"""Numbers of a program at once, of a warp, programs of a processor (enough to hide memory's latency, few enough to keep
the partial sums small), and how many rounds of loads are under way."""
CANDIDATES = {
    "backward": [
        *((4096, 512, programs, stages) for programs in (2, 3) for stages in (1, 2, 3)), (4096, 512, 4, 1),
        (4096, 1024, 4, 1), (4096, 256, 2, 1), (4096, 256, 2, 2), (8192, 512, 1, 1), (8192, 512, 2, 1),
    ]
}  # fmt: skip


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
    added: tl.constexpr, tile: tl.constexpr, block: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, block)
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    dweight = tl.zeros((tile, block), tl.float32)  # a thread's own until the end
    for start in tl.range(tl.program_id(0) * tile, rows, tl.num_programs(0) * tile, num_stages=stages):
        row = start + tl.arange(0, tile)
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        inside = (row < rows)[:, None] & (column < width)[None, :]
        scale = tl.load(scale_ptr + row, mask=row < rows, other=0.0)[:, None]
        n = tl.load(s_ptr + at, mask=inside, other=0.0).to(tl.float32) * scale
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dweight += dy * n
        dn = dy * weight
        dx = scale * (dn - n * (tl.sum(dn * n, 1) / width)[:, None])
        if added:
            dx += tl.load(ds_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(dweight_ptr + tl.program_id(0) * width + column, tl.sum(dweight, 0), mask=column < width)


class RMSNorm(torch.autograd.Function):
    """Of rows `(rows, width)`."""

    @staticmethod
    def forward(ctx, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Any:
        rows, width = x.shape
        y, scale = torch.empty_like(x), x.new_empty(rows, dtype=torch.float32)
        s = x if residual is None else torch.empty_like(x)
        launch = launch_of(width)
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
        dy = torch.zeros_like(s) if dy is None else dy.contiguous()
        dx, dweight = gradients(s, weight, scale, dy, ds)
        return dx, dx if ctx.added else None, dweight.to(weight.dtype), None


def gradients(s: Tensor, weight: Tensor, scale: Tensor, dy: Tensor, ds: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of s, what comes to it besides included, and of the weight, in float32; scale: `(rows,)`, 1 / rms of s."""
    rows, width = s.shape
    dx, added = torch.empty_like(s), ds is not None
    ds = dy if ds is None else ds.contiguous()
    programs, launch = backward_launch("rms_norm", BACKWARD, rows, width, s.device)
    dweight = weight.new_empty((programs, width), dtype=torch.float32)
    with torch.cuda.device_of(s):
        _backward[(programs,)](s, weight, scale, dy, ds, dx, dweight, rows, width, added=added, **launch)
    return dx, dweight.sum(0)


def backward_launch(
    op: str, default: tuple[int, ...], rows: int, width: int, device: torch.device
) -> tuple[int, dict[str, int]]:
    """How many programs go over the rows, and how: `BACKWARD` or what is chosen in its place."""
    values, per_warp, programs, stages = choose(op, "backward", default)
    block = triton.next_power_of_2(width)
    tile = max(1, values // block)
    warps = max(1, min(16, tile * block // per_warp))
    programs = min(triton.cdiv(rows, tile), programs * _processors(device))
    return programs, {"tile": tile, "block": block, "stages": stages, "num_warps": warps}


def launch_of(width: int) -> dict[str, int]:
    """Short rows share a program, so that every thread has several values in flight."""
    block = triton.next_power_of_2(width)
    return {"tile": max(1, VALUES_PER_PROGRAM // block), "block": block, "num_warps": 4 if block <= 4096 else 16}


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, residual: Tensor | None = None):
    """See `reference.rms_norm`; `eager` takes float64, rows beyond `LARGEST_WIDTH`, x and residual of two dtypes."""
    mixed = residual is not None and residual.dtype != x.dtype
    if x.dtype == torch.float64 or mixed or not x.numel() or x.shape[-1] > LARGEST_WIDTH:
        return eager(x, weight, eps, residual)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    other = None if residual is None else residual.reshape(rows.shape).contiguous()
    found = RMSNorm.apply(rows, other, weight, eps)
    return found.view(x.shape) if residual is None else tuple(part.view(x.shape) for part in found)
