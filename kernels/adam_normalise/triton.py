"""The Adam step of a matrix of unit vectors for CUDA: a program holds whole vectors in registers, so every tensor is
read and written once.

Columns are not contiguous: a program takes several neighbouring ones, so that what it reads of a row is.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from nlrl.kernels.adam_normalise.reference import SMALLEST_NORM
from nlrl.kernels.adam_normalise.reference import adam_normalise as reference

VALUES_PER_PROGRAM = 4096
MOST_VALUES = 32768
"""A program's registers hold no more."""
COLUMNS = 8
"""Neighbours that make a transaction of memory: 32 bytes."""


@triton.jit
def _step(
    weight_ptr, grad_ptr, m_ptr, v_ptr, rounded_ptr, step_ptr, lr_ptr, vectors, length, eps, tiny,
    vector_stride: tl.constexpr, value_stride: tl.constexpr, beta1: tl.constexpr, beta2: tl.constexpr,
    log_beta1: tl.constexpr, log_beta2: tl.constexpr, rounds: tl.constexpr, tile: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    vector = tl.program_id(0) * tile + tl.arange(0, tile)
    value = tl.arange(0, block)
    at = vector.to(tl.int64)[:, None] * vector_stride + value.to(tl.int64)[None, :] * value_stride
    inside = (vector < vectors)[:, None] & (value < length)[None, :]
    time = tl.load(step_ptr).to(tl.float64)
    size = (tl.load(lr_ptr).to(tl.float64) / (1.0 - tl.exp(time * log_beta1))).to(tl.float32)
    scale = (1.0 / tl.sqrt(1.0 - tl.exp(time * log_beta2))).to(tl.float32)
    g = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
    m = tl.load(m_ptr + at, mask=inside, other=0.0)
    m += (g - m) * (1.0 - beta1)
    tl.store(m_ptr + at, m, mask=inside)
    v = tl.load(v_ptr + at, mask=inside, other=0.0)
    v = v * beta2 + g * g * (1.0 - beta2)
    tl.store(v_ptr + at, v, mask=inside)
    p = tl.load(weight_ptr + at, mask=inside, other=0.0)
    p -= size * m / (tl.sqrt(v) * scale + eps)
    p = p / tl.sqrt(tl.maximum(tl.sum(p * p, 1), tiny))[:, None]
    tl.store(weight_ptr + at, p, mask=inside)
    if rounds:
        tl.store(rounded_ptr + at, p.to(rounded_ptr.dtype.element_ty), mask=inside)


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
    """See `reference.adam_normalise`; that also does what does not fit here (vectors longer than 4096, other dtypes
    than float32, tensors that are not contiguous)."""
    length, vectors = weight.shape[axis], weight.shape[1 - axis]
    tensors = [weight, grad, exp_avg, exp_avg_sq] + ([] if rounded is None else [rounded])
    plain = all(tensor.is_contiguous() for tensor in tensors) and all(
        tensor.dtype == torch.float32 for tensor in (weight, exp_avg, exp_avg_sq)
    )
    launch = _launch(length, axis)
    if not plain or launch["tile"] * launch["block"] > MOST_VALUES:
        reference(weight, grad, exp_avg, exp_avg_sq, step, learning_rate, betas, eps, axis, rounded)
        return
    if not weight.numel():
        return
    rate = learning_rate if isinstance(learning_rate, Tensor) else weight.new_tensor(learning_rate)
    columns = weight.shape[1]
    vector_stride, value_stride = (columns, 1) if axis == 1 else (1, columns)
    with torch.cuda.device_of(weight):
        _step[(triton.cdiv(vectors, launch["tile"]),)](
            weight, grad, exp_avg, exp_avg_sq, weight if rounded is None else rounded, step, rate, vectors, length,
            eps, SMALLEST_NORM**2, vector_stride, value_stride, betas[0], betas[1], math.log(betas[0]),
            math.log(betas[1]), rounded is not None, **launch,
        )  # fmt: skip


def _launch(length: int, axis: int) -> dict[str, int]:
    block = triton.next_power_of_2(length)
    tile = max(1 if axis == 1 else COLUMNS, VALUES_PER_PROGRAM // block)
    return {"tile": tile, "block": block, "num_warps": 16 if tile * block > 8192 else 8}
