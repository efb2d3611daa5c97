"""The Adam step of a matrix of unit vectors for CUDA: a program holds whole vectors in registers, so every tensor is
read and written once.

Columns are not contiguous: a program takes several neighbouring ones, so that what it reads of a row is, and goes down
them some rows at a time. It keeps the new weights of all these in registers until it knows their length, or, where it
must not, writes them and reads them again.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nlrl.kernels.adam_normalise.reference import SMALLEST_NORM
from nlrl.kernels.adam_normalise.reference import adam_normalise as reference
from nlrl.kernels.launches import choose

VALUES_PER_PROGRAM = 4096
MOST_VALUES = 32768
"""Of a row: a program's registers hold no more."""
COLUMNS = (8, 128, 8, 1)
"""Of a program, its rows at a time, warps, and whether it keeps the new weights."""
CANDIDATES = {
    "columns": [
        (8, 128, 8, 1), (8, 256, 8, 1), (8, 128, 4, 1), (8, 256, 16, 1), (16, 128, 16, 1), (16, 64, 16, 1),
        (16, 256, 16, 1), (16, 128, 8, 1), (16, 128, 8, 0), (16, 64, 4, 0), (8, 128, 4, 0), (32, 64, 8, 0),
        (32, 128, 16, 0),
    ]
}  # fmt: skip
MOST_KEPT = 112
"""Of a thread's registers."""


@triton.jit
def _sizes(step_ptr, lr_ptr, log_beta1: tl.constexpr, log_beta2: tl.constexpr):
    """Learning rate and denominator's scale with the bias of moments taken out."""
    time = tl.load(step_ptr).to(tl.float64)
    size = (tl.load(lr_ptr).to(tl.float64) / (1.0 - tl.exp(time * log_beta1))).to(tl.float32)
    return size, (1.0 / tl.sqrt(1.0 - tl.exp(time * log_beta2))).to(tl.float32)


@triton.jit
def _moved(weight_ptr, grad_ptr, m_ptr, v_ptr, at, inside, size, scale, eps, beta1: tl.constexpr, beta2: tl.constexpr):
    """Adam's new weights, of any length; writes the moments."""
    g = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
    m = tl.load(m_ptr + at, mask=inside, other=0.0)
    v = tl.load(v_ptr + at, mask=inside, other=0.0)
    p = tl.load(weight_ptr + at, mask=inside, other=0.0)
    m += (g - m) * (1.0 - beta1)
    v = v * beta2 + g * g * (1.0 - beta2)
    tl.store(m_ptr + at, m, mask=inside)
    tl.store(v_ptr + at, v, mask=inside)
    return p - size * m / (tl.sqrt(v) * scale + eps)


@triton.jit
def _rows(
    weight_ptr, grad_ptr, m_ptr, v_ptr, rounded_ptr, step_ptr, lr_ptr, rows, length, eps, tiny, beta1: tl.constexpr,
    beta2: tl.constexpr, log_beta1: tl.constexpr, log_beta2: tl.constexpr, rounds: tl.constexpr, tile: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * tile + tl.arange(0, tile)
    value = tl.arange(0, block)
    at = row.to(tl.int64)[:, None] * length + value[None, :]
    inside = (row < rows)[:, None] & (value < length)[None, :]
    size, scale = _sizes(step_ptr, lr_ptr, log_beta1, log_beta2)
    p = _moved(weight_ptr, grad_ptr, m_ptr, v_ptr, at, inside, size, scale, eps, beta1, beta2)
    p = p / tl.sqrt(tl.maximum(tl.sum(p * p, 1), tiny))[:, None]
    tl.store(weight_ptr + at, p, mask=inside)
    if rounds:
        tl.store(rounded_ptr + at, p.to(rounded_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _columns(
    weight_ptr, grad_ptr, m_ptr, v_ptr, rounded_ptr, step_ptr, lr_ptr, rows, columns, eps, tiny, beta1: tl.constexpr,
    beta2: tl.constexpr, log_beta1: tl.constexpr, log_beta2: tl.constexpr, rounds: tl.constexpr, tile: tl.constexpr,
    block: tl.constexpr, parts: tl.constexpr, keeps: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * tile + tl.arange(0, tile)
    row = tl.arange(0, block)
    at = column[:, None] + row[None, :] * columns
    step = tl.full((), block, tl.int64) * columns  # of pointers, so that offsets take one register each
    size, scale = _sizes(step_ptr, lr_ptr, log_beta1, log_beta2)
    squares = tl.zeros((tile, block), tl.float32)
    if keeps:
        kept = ()
        for part in tl.static_range(parts):
            inside = (column < columns)[:, None] & (part * block + row < rows)[None, :]
            p = _moved(
                weight_ptr + part * step, grad_ptr + part * step, m_ptr + part * step, v_ptr + part * step, at, inside,
                size, scale, eps, beta1, beta2,
            )  # fmt: skip
            squares += p * p
            kept = kept + (p,)  # noqa: RUF005, Triton cannot unpack
        norm = tl.sqrt(tl.maximum(tl.sum(squares, 1), tiny))[:, None]
        for part in tl.static_range(parts):
            inside = (column < columns)[:, None] & (part * block + row < rows)[None, :]
            p = kept[part] / norm
            tl.store(weight_ptr + part * step + at, p, mask=inside)
            if rounds:
                tl.store(rounded_ptr + part * step + at, p.to(rounded_ptr.dtype.element_ty), mask=inside)
    else:
        for part in range(parts):
            inside = (column < columns)[:, None] & (part * block + row < rows)[None, :]
            p = _moved(
                weight_ptr + part * step, grad_ptr + part * step, m_ptr + part * step, v_ptr + part * step, at, inside,
                size, scale, eps, beta1, beta2,
            )  # fmt: skip
            squares += p * p
            tl.store(weight_ptr + part * step + at, p, mask=inside)
        norm = tl.sqrt(tl.maximum(tl.sum(squares, 1), tiny))[:, None]
        for part in range(parts):
            inside = (column < columns)[:, None] & (part * block + row < rows)[None, :]
            p = tl.load(weight_ptr + part * step + at, mask=inside, other=0.0) / norm
            tl.store(weight_ptr + part * step + at, p, mask=inside)
            if rounds:
                tl.store(rounded_ptr + part * step + at, p.to(rounded_ptr.dtype.element_ty), mask=inside)


def adam_normalise(
    weight: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    learning_rate: Tensor | float,
    betas: tuple[float, float],
    eps: float,
    axis: int,
    rounded: Tensor | None = None,
) -> None:
    """See `reference.adam_normalise`; that also does what does not fit here (rows longer than 32768, other dtypes than
    float32, tensors that are not contiguous)."""
    rows, columns = weight.shape
    tensors = [weight, grad, exp_avg, exp_avg_sq] + ([] if rounded is None else [rounded])
    plain = all(tensor.is_contiguous() for tensor in tensors) and all(
        tensor.dtype == torch.float32 for tensor in (weight, exp_avg, exp_avg_sq)
    )
    if not plain or (axis == 1 and columns > MOST_VALUES):
        reference(weight, grad, exp_avg, exp_avg_sq, step, learning_rate, betas, eps, axis, rounded)
        return
    if not weight.numel():
        return
    rate = learning_rate if isinstance(learning_rate, Tensor) else weight.new_tensor(learning_rate)
    program, grid, launch = _row_launch(rows, columns) if axis == 1 else _column_launch(rows, columns)
    with torch.cuda.device_of(weight):
        program[grid](
            weight, grad, exp_avg, exp_avg_sq, weight if rounded is None else rounded, step, rate, rows, columns,
            eps, SMALLEST_NORM**2, betas[0], betas[1], math.log(betas[0]), math.log(betas[1]), rounded is not None,
            **launch,
        )  # fmt: skip


def _row_launch(rows: int, columns: int) -> tuple[Any, tuple[int], dict[str, int]]:
    block = triton.next_power_of_2(columns)
    tile = max(1, VALUES_PER_PROGRAM // block)
    return _rows, (triton.cdiv(rows, tile),), {"tile": tile, "block": block, "num_warps": 16 if block > 8192 else 8}


def _column_launch(rows: int, columns: int) -> tuple[Any, tuple[int], dict[str, int]]:
    tile, block, warps, keeps = choose("adam_normalise", "columns", COLUMNS)
    block = min(block, triton.next_power_of_2(rows))
    parts = triton.cdiv(rows, block)
    keeps = keeps and parts * block * tile <= MOST_KEPT * 32 * warps
    launch = {"tile": tile, "block": block, "parts": parts, "keeps": bool(keeps), "num_warps": warps}
    return _columns, (triton.cdiv(columns, tile),), launch
