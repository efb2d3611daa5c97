"""The one-bit linear map for CUDA; formulas in `reference`.

1. One row (`_one_row`): four inputs have only sixteen signed sums. A program adds up those of the inputs at hand once
   and looks them up for each of its outputs by four bits at a time: a look-up for four weights, where unpacking takes
   three instructions for each.
2. More rows (`_rows`): x times alpha, rounded, and the shift are made once (`_prepare`), with the inputs in an order in
   which bit j of all bytes stands together. Then a tile of bytes is multiplied bit by bit, eight products a tile, and
   no unpacked weight changes its place.

A program adds in a fixed order, so equal inputs give equal bits.

In bfloat16 and float16 these stand in where `cuda` cannot: rows of bits of no whole vectors, or no NVRTC.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nlrl.kernels.bit_linear import cuda
from nlrl.kernels.bit_linear.eager import bit_linear as eager
from nlrl.kernels.launches import choose

LAUNCH = {"one_row": (64, 32, 4, 3), "rows": (64, 32, 4, 3)}
"""By program: outputs, bytes of each that it takes at a time, warps, stages. One row: 64 bytes at a time take all 255
registers of a thread; 128 programs at 8,192 outputs, one for each processor of a Hopper. More: x of 64 rows is
8 x 64 x 32 numbers a turn, 32 KB in two bytes."""
CANDIDATES = {
    "one_row": [(o, c, w, 3) for o in (16, 32, 64) for c in (32, 64) for w in (4, 8)],
    "rows": [(o, c, w, s) for o in (32, 64, 128) for c in (32, 64) for w in (4, 8) for s in (2, 3)],
} | cuda.CANDIDATES
SHORTEST = 16
"""Bytes at a time of `_one_row`, at least: Triton 3.6 does not compile a table of too few rows for the warps."""
MOST_ROWS = 64
"""Rows of a program of `_rows`; tensor cores take no less than 16."""


# -- one row -----------------------------------------------------------------------------------------------------------
@triton.jit
def _sums(x_ptr, alpha_ptr, start, inputs, count: tl.constexpr, low: tl.constexpr):
    """`(count, 16)`: of the low or high four inputs of each byte, the sums of alpha x with the signs that the bits of 0
    to 15 say."""
    index = tl.arange(0, 16)
    total = tl.zeros((count, 16), tl.float32)
    for j in tl.static_range(4):
        at = start * 8 + tl.arange(0, count) * 8 + (j if low else 4 + j)
        x = tl.load(x_ptr + at, mask=at < inputs, other=0.0)
        scaled = (x * tl.load(alpha_ptr + at, mask=at < inputs, other=0.0)).to(x.dtype).to(tl.float32)
        sign = (((index >> j) & 1) * 2 - 1).to(tl.float32)
        total += scaled[:, None] * sign[None, :]
    return total


@triton.jit
def _one_row(
    x_ptr, bits_ptr, alpha_ptr, beta_ptr, y_ptr, inputs, n, row_bytes, outputs: tl.constexpr, count: tl.constexpr
):  # fmt: skip
    out = tl.program_id(0) * outputs + tl.arange(0, outputs)
    total = tl.zeros((outputs,), tl.float32)
    shift = tl.zeros((count * 8,), tl.float32)
    for start in range(0, row_bytes, count):
        byte = start + tl.arange(0, count)
        where = out.to(tl.int64)[None, :] * row_bytes + byte[:, None]
        inside = (byte < row_bytes)[:, None] & (out < n)[None, :]
        bits = tl.load(bits_ptr + where, mask=inside, other=0).to(tl.int32)
        total += tl.sum(tl.gather(_sums(x_ptr, alpha_ptr, start, inputs, count, True), bits & 15, 1), 0)
        total += tl.sum(tl.gather(_sums(x_ptr, alpha_ptr, start, inputs, count, False), bits >> 4, 1), 0)
        at = start * 8 + tl.arange(0, count * 8)
        x = tl.load(x_ptr + at, mask=at < inputs, other=0.0).to(tl.float32)
        shift += x * tl.load(beta_ptr + at, mask=at < inputs, other=0.0).to(tl.float32)
    y = total + tl.sum(shift, 0)
    tl.store(y_ptr + out, y.to(y_ptr.dtype.element_ty), mask=out < n)


# -- more rows ---------------------------------------------------------------------------------------------------------
@triton.jit
def _prepare(x_ptr, alpha_ptr, beta_ptr, scaled_ptr, shift_ptr, inputs, row_bytes, count: tl.constexpr):
    """alpha x of one row as `(8, bytes)`, and its shift."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, 8)
    shift = tl.zeros((8, count), tl.float32)
    for start in range(0, row_bytes, count):
        byte = start + tl.arange(0, count)
        at = byte[None, :] * 8 + place[:, None]
        inside = at < inputs
        x = tl.load(x_ptr + row * inputs + at, mask=inside, other=0.0)
        scaled = x * tl.load(alpha_ptr + at, mask=inside, other=0.0)
        shift += x.to(tl.float32) * tl.load(beta_ptr + at, mask=inside, other=0.0).to(tl.float32)
        to = scaled_ptr + (row * 8 + place[:, None]) * row_bytes + byte[None, :]
        tl.store(to, scaled.to(scaled_ptr.dtype.element_ty), mask=(byte < row_bytes)[None, :])
    tl.store(shift_ptr + row, tl.sum(tl.sum(shift, 1), 0))


@triton.jit(do_not_specialize=["rows"])
def _rows(
    scaled_ptr, bits_ptr, shift_ptr, y_ptr, rows, n, row_bytes,
    block_m: tl.constexpr, outputs: tl.constexpr, count: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * block_m + tl.arange(0, block_m)
    out = tl.program_id(0) * outputs + tl.arange(0, outputs)
    total = tl.zeros((block_m, outputs), tl.float32)
    for start in range(0, row_bytes, count):
        byte = start + tl.arange(0, count)
        where = out.to(tl.int64)[None, :] * row_bytes + byte[:, None]
        inside = (byte < row_bytes)[:, None] & (out < n)[None, :]
        bits = tl.load(bits_ptr + where, mask=inside, other=0).to(tl.int32)
        known = (row < rows)[:, None] & (byte < row_bytes)[None, :]
        for j in tl.static_range(8):
            at = (row.to(tl.int64)[:, None] * 8 + j) * row_bytes + byte[None, :]
            x = tl.load(scaled_ptr + at, mask=known, other=0.0)
            signs = (((bits >> j) & 1) * 2 - 1).to(x.dtype)
            total = tl.dot(x, signs, total, input_precision="ieee" if wide else "tf32")
    y = total + tl.load(shift_ptr + row, mask=row < rows, other=0.0)[:, None]
    at = row.to(tl.int64)[:, None] * n + out[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=(row < rows)[:, None] & (out < n)[None, :])


# -- launches ----------------------------------------------------------------------------------------------------------
def _multiply(x: Tensor, bits: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    rows, n, row_bytes = x.shape[0], *bits.shape
    y = x.new_empty((rows, n))
    if rows == 1:
        launch = _launch("one_row", row_bytes, SHORTEST)
        _one_row[(triton.cdiv(n, launch["outputs"]),)](x, bits, alpha, beta, y, x.shape[1], n, row_bytes, **launch)
        return y
    scaled, shift = x.new_empty((rows, 8, row_bytes)), x.new_empty((rows,), dtype=torch.float32)
    _prepare[(rows,)](x, alpha, beta, scaled, shift, x.shape[1], row_bytes, count=128, num_warps=4)
    block_m = min(MOST_ROWS, max(16, triton.next_power_of_2(rows)))
    launch = _launch("rows", row_bytes, 16) | {"block_m": block_m, "wide": x.dtype == torch.float32}
    grid = triton.cdiv(n, launch["outputs"]), triton.cdiv(rows, block_m)
    _rows[grid](scaled, bits, shift, y, rows, n, row_bytes, **launch)
    return y


def _launch(program: str, row_bytes: int, least: int) -> dict[str, int]:
    """For short rows: no tile is longer than what there is."""
    outputs, count, warps, stages = choose("bit_linear", program, LAUNCH[program])
    count = max(least, min(count, triton.next_power_of_2(row_bytes)))
    return {"outputs": outputs, "count": count, "num_warps": warps, "num_stages": stages}


def bit_linear(x: Tensor, bits: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """See `reference.bit_linear`. Gradients, float64 and inputs of several dtypes are done by `eager`."""
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, alpha, beta))
    mixed = not x.dtype == alpha.dtype == beta.dtype
    if learns or mixed or x.dtype == torch.float64 or not x.numel() or not bits.numel():
        return eager(x, bits, alpha, beta)
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    arguments = flat, bits.contiguous(), alpha.contiguous(), beta.contiguous()
    with torch.cuda.device_of(flat):
        y = cuda.bit_linear(*arguments) if flat.is_cuda else None
        return (_multiply(*arguments) if y is None else y).view(*x.shape[:-1], len(bits))
