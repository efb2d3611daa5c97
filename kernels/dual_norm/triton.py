"""The mean of two normalised tensors for CUDA: both are read once, their mean is written once. Backward, one pass over
the rows makes the gradients of both; those of the weights are summed as in `rms_norm`."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nlrl.kernels.dual_norm.eager import dual_norm as eager
from nlrl.kernels.rms_norm.triton import LARGEST_WIDTH, backward_launch, launch_of

BACKWARD = (4096, 256, 1, 2)
"""As `rms_norm.triton.BACKWARD`."""
CANDIDATES = {
    "backward": [
        *((4096, 256, programs, stages) for programs in (1, 2) for stages in (1, 2, 3)),
        *((4096, 512, 1, stages) for stages in (1, 2, 3)), (4096, 512, 2, 1), (8192, 512, 1, 1),
    ]
}  # fmt: skip


@triton.jit
def _scale(s, width, eps):
    return tl.rsqrt(tl.sum(s * s, 1) / width + eps)


@triton.jit(do_not_specialize=["rows"])
def _forward(
    a_ptr, b_ptr, a_weight_ptr, b_weight_ptr, y_ptr, a_scale_ptr, b_scale_ptr, rows, width, eps,
    tile: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * tile + tl.arange(0, tile)
    column = tl.arange(0, block)
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    inside = (row < rows)[:, None] & (column < width)[None, :]
    a = tl.load(a_ptr + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + at, mask=inside, other=0.0).to(tl.float32)
    a_weight = tl.load(a_weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    b_weight = tl.load(b_weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    a_scale, b_scale = _scale(a, width, eps), _scale(b, width, eps)
    y = a * a_scale[:, None] * a_weight[None, :] + b * b_scale[:, None] * b_weight[None, :]
    tl.store(y_ptr + at, (y * 0.5).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(a_scale_ptr + row, a_scale, mask=row < rows)
    tl.store(b_scale_ptr + row, b_scale, mask=row < rows)


@triton.jit(do_not_specialize=["rows"])
def _backward(
    a_ptr, b_ptr, a_weight_ptr, b_weight_ptr, scales_ptr, dy_ptr, da_ptr, db_ptr, dweights_ptr, rows, width,
    tile: tl.constexpr, block: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, block)
    a_weight = tl.load(a_weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    b_weight = tl.load(b_weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    da_weight, db_weight = tl.zeros((tile, block), tl.float32), tl.zeros((tile, block), tl.float32)
    for start in tl.range(tl.program_id(0) * tile, rows, tl.num_programs(0) * tile, num_stages=stages):
        row = start + tl.arange(0, tile)
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        inside = (row < rows)[:, None] & (column < width)[None, :]
        a_scale = tl.load(scales_ptr + row, mask=row < rows, other=0.0)[:, None]
        b_scale = tl.load(scales_ptr + rows + row, mask=row < rows, other=0.0)[:, None]
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32) * 0.5
        a = tl.load(a_ptr + at, mask=inside, other=0.0).to(tl.float32) * a_scale
        b = tl.load(b_ptr + at, mask=inside, other=0.0).to(tl.float32) * b_scale
        da_weight += dy * a
        db_weight += dy * b
        da, db = dy * a_weight, dy * b_weight
        a_share, b_share = tl.sum(da * a, 1) / width, tl.sum(db * b, 1) / width
        da = a_scale * (da - a * a_share[:, None])
        db = b_scale * (db - b * b_share[:, None])
        tl.store(da_ptr + at, da.to(da_ptr.dtype.element_ty), mask=inside)
        tl.store(db_ptr + at, db.to(db_ptr.dtype.element_ty), mask=inside)
    dweights_ptr += tl.program_id(0) * 2 * width + column
    tl.store(dweights_ptr, tl.sum(da_weight, 0), mask=column < width)
    tl.store(dweights_ptr + width, tl.sum(db_weight, 0), mask=column < width)


class DualNorm(torch.autograd.Function):
    """Of rows `(rows, width)`."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, a_weight: Tensor, b_weight: Tensor, eps: float) -> Any:
        rows, width = a.shape
        y = torch.empty_like(a)
        scales = a.new_empty((2, rows), dtype=torch.float32)
        launch = launch_of(width)
        launch["num_warps"] *= 2  # two rows are held where that of `rms_norm` holds one
        with torch.cuda.device_of(a):
            _forward[(triton.cdiv(rows, launch["tile"]),)](
                a, b, a_weight, b_weight, y, scales[0], scales[1], rows, width, eps, **launch
            )
        ctx.save_for_backward(a, b, a_weight, b_weight, scales)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        a, b, a_weight, b_weight, scales = ctx.saved_tensors
        (rows, width), dy = a.shape, dy.contiguous()
        da, db = torch.empty_like(a), torch.empty_like(b)
        programs, launch = backward_launch("dual_norm", BACKWARD, rows, width, a.device)
        dweights = a.new_empty((programs, 2, width), dtype=torch.float32)
        with torch.cuda.device_of(a):
            _backward[(programs,)](
                a, b, a_weight, b_weight, scales, dy, da, db, dweights, rows, width, **launch
            )  # fmt: skip
        da_weight, db_weight = dweights.sum(0).to(a_weight.dtype)
        return da, db, da_weight, db_weight.to(b_weight.dtype), None


def dual_norm(a: Tensor, b: Tensor, a_weight: Tensor, b_weight: Tensor, eps: float = 1e-6) -> Tensor:
    """See `reference.dual_norm`; `eager` takes float64, rows beyond `LARGEST_WIDTH`, tensors of two dtypes."""
    if a.dtype == torch.float64 or a.dtype != b.dtype or not a.numel() or a.shape[-1] > LARGEST_WIDTH:
        return eager(a, b, a_weight, b_weight, eps)
    rows = (x.reshape(-1, x.shape[-1]).contiguous() for x in (a, b))
    return DualNorm.apply(*rows, a_weight, b_weight, eps).view(a.shape)
