"""The gated activation for CUDA: one pass forward, one backward; formulas in `reference`."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nlrl.kernels.swiglu.eager import swiglu as eager

VALUES_PER_PROGRAM = 1024


@triton.jit
def _forward(x_ptr, y_ptr, row, channels, block: tl.constexpr):
    line = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < channels
    up = tl.load(x_ptr + line * row + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + line * row + channels + column, mask=inside, other=0.0).to(tl.float32)
    y = up * gate / (1.0 + tl.exp(-gate))
    tl.store(y_ptr + line * channels + column, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(x_ptr, dy_ptr, dx_ptr, row, channels, block: tl.constexpr):
    line = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < channels
    up = tl.load(x_ptr + line * row + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + line * row + channels + column, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + line * channels + column, mask=inside, other=0.0).to(tl.float32)
    s = 1.0 / (1.0 + tl.exp(-gate))
    dup, dgate = dy * gate * s, dy * up * s * (1.0 + gate * (1.0 - s))
    at = dx_ptr + line * 2 * channels + column
    tl.store(at, dup.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(at + channels, dgate.to(dx_ptr.dtype.element_ty), mask=inside)


class SwiGLU(torch.autograd.Function):
    """Keeps its input alone."""

    @staticmethod
    def forward(ctx, up_gate: Tensor) -> Tensor:
        x = _rows(up_gate)
        ctx.save_for_backward(x)
        ctx.shape = up_gate.shape
        y = x.new_empty((*up_gate.shape[:-1], up_gate.shape[-1] // 2))
        if y.numel():
            with torch.cuda.device_of(x):
                _forward[_grid(y)](x, y, x.stride(0), y.shape[-1], **_launch(y))
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        x, dy = ctx.saved_tensors[0], dy.contiguous()
        dx = x.new_empty(ctx.shape)
        if dx.numel():
            with torch.cuda.device_of(x):
                _backward[_grid(dy)](x, dy, dx, x.stride(0), dy.shape[-1], **_launch(dy))
        return dx


def _rows(x: Tensor) -> Tensor:
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def _grid(y: Tensor) -> tuple[int, int]:
    return y.numel() // y.shape[-1], triton.cdiv(y.shape[-1], _launch(y)["block"])


def _launch(y: Tensor) -> dict[str, int]:
    block = min(VALUES_PER_PROGRAM, triton.next_power_of_2(y.shape[-1]))
    return {"block": block, "num_warps": 4}


def swiglu(up_gate: Tensor) -> Tensor:
    """See `reference.swiglu`; float64 is done by `eager`."""
    return eager(up_gate) if up_gate.dtype == torch.float64 else SwiGLU.apply(up_gate)
