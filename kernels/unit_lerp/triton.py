"""The residual step of nGPT for CUDA: a program holds whole rows in registers, so every tensor is read and written
once.

The gradient of `a` is a sum over all tokens. Each program sums the rows it owns, a fixed set, and the partial sums
are added in a fixed order afterwards: equal inputs give equal bits, which atomics would not.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nlrl.kernels.unit_lerp.reference import SMALLEST_NORM

VALUES_PER_PROGRAM = 2048
PROGRAMS_PER_PROCESSOR = 4
"""Of the backward pass: enough to hide memory latency, few enough to keep the partial sums small."""


@triton.jit(do_not_specialize=["rows"])
def _forward(
    h_ptr, x_ptr, a_ptr, y_ptr, x_scale_ptr, z_scale_ptr, rows, width, tiny, tile: tl.constexpr, block: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0) * tile + tl.arange(0, tile)
    column = tl.arange(0, block)
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    inside = (row < rows)[:, None] & (column < width)[None, :]
    h = tl.load(h_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    a = tl.load(a_ptr + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    x_scale = 1.0 / tl.sqrt(tl.maximum(tl.sum(x * x, 1), tiny))
    z = h + a * (x * x_scale[:, None] - h)
    z_scale = 1.0 / tl.sqrt(tl.maximum(tl.sum(z * z, 1), tiny))
    tl.store(y_ptr + at, (z * z_scale[:, None]).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(x_scale_ptr + row, x_scale, mask=row < rows)
    tl.store(z_scale_ptr + row, z_scale, mask=row < rows)


@triton.jit(do_not_specialize=["rows"])
def _backward(
    h_ptr, x_ptr, a_ptr, y_ptr, dy_ptr, x_scale_ptr, z_scale_ptr, dh_ptr, dx_ptr, da_ptr, rows, width,
    tile: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, block)
    a = tl.load(a_ptr + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    da = tl.zeros((block,), tl.float32)
    for start in range(tl.program_id(0) * tile, rows, tl.num_programs(0) * tile):
        row = start + tl.arange(0, tile)
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        inside = (row < rows)[:, None] & (column < width)[None, :]
        h = tl.load(h_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x_scale = tl.load(x_scale_ptr + row, mask=row < rows, other=0.0)[:, None]
        z_scale = tl.load(z_scale_ptr + row, mask=row < rows, other=0.0)[:, None]
        b = x * x_scale
        dz = (dy - y * tl.sum(y * dy, 1)[:, None]) * z_scale
        db = a * dz
        dx = (db - b * tl.sum(b * db, 1)[:, None]) * x_scale
        da += tl.sum(dz * (b - h), 0)
        tl.store(dh_ptr + at, (dz - db).to(dh_ptr.dtype.element_ty), mask=inside)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(da_ptr + tl.program_id(0) * width + column, da, mask=column < width)


class UnitLerp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor, x: Tensor, a: Tensor) -> Tensor:
        h, x, a = h.contiguous(), x.contiguous(), a.contiguous()
        width, rows = h.shape[-1], h.numel() // h.shape[-1]
        y = torch.empty_like(h)
        x_scale, z_scale = h.new_empty((2, rows), dtype=torch.float32)
        if rows:
            with torch.cuda.device_of(h):
                launch = _launch(width)
                grid = (triton.cdiv(rows, launch["tile"]),)
                _forward[grid](h, x, a, y, x_scale, z_scale, rows, width, SMALLEST_NORM**2, **launch)
        ctx.save_for_backward(h, x, a, y, x_scale, z_scale)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, x, a, y, x_scale, z_scale = ctx.saved_tensors
        width, rows = h.shape[-1], h.numel() // h.shape[-1]
        dh, dx = torch.empty_like(h), torch.empty_like(x)
        da = h.new_zeros((min(rows, _programs(h.device)), width), dtype=torch.float32)
        if rows:
            tensors = (h, x, a, y, dy.contiguous(), x_scale, z_scale, dh, dx, da)
            with torch.cuda.device_of(h):
                _backward[(da.shape[0],)](*tensors, rows, width, **_launch(width))
        return dh, dx, da.sum(0).to(a.dtype)


def _launch(width: int) -> dict[str, int]:
    """Short rows share a program, so that every thread has several values in flight."""
    block = triton.next_power_of_2(width)
    return {"tile": max(1, VALUES_PER_PROGRAM // block), "block": block, "num_warps": 4 if block <= 2048 else 8}


def _programs(device: torch.device) -> int:
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    return PROGRAMS_PER_PROCESSOR * processors


def unit_lerp(h: Tensor, x: Tensor, a: Tensor) -> Tensor:
    """See `reference.unit_lerp`. float64 is summed in float32 here."""
    return UnitLerp.apply(h, x, a)
