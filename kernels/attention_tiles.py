"""Pieces of attention programs: tiles, spans of keys, masks and the online softmax."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e30)
"""Instead of minus infinity, whose difference with itself is NaN: a tile may hide all its keys from a row."""


@triton.jit
def dot(a, b, acc):
    return tl.dot(a, b, acc=acc, input_precision="tf32x3")


@triton.jit
def load_tile(ptr, row, stride, rows, width: tl.constexpr, block: tl.constexpr, bounded: tl.constexpr):
    # `width` columns of some rows; beyond `rows`, zeros.
    column = tl.arange(0, block)
    at = ptr + row[:, None] * stride + column[None, :]
    if bounded and width == block:
        values = tl.load(at, mask=(row < rows)[:, None], other=0.0)
    elif bounded:
        values = tl.load(at, mask=(row < rows)[:, None] & (column < width)[None, :], other=0.0)
    elif width == block:
        values = tl.load(at)
    else:
        values = tl.load(at, mask=(column < width)[None, :], other=0.0)
    return values


@triton.jit
def store_tile(ptr, row, stride, rows, values, width: tl.constexpr, block: tl.constexpr):
    column = tl.arange(0, block)
    at = ptr + row[:, None] * stride + column[None, :]
    tl.store(at, values.to(ptr.dtype.element_ty), mask=(row < rows)[:, None] & (column < width)[None, :])


@triton.jit
def key_span(start, row, m, time, block_m: tl.constexpr, block_n: tl.constexpr, packed: tl.constexpr):
    # Keys of a tile of queries: where they begin, the part that all queries see, and the end.
    diagonal = m // block_n * block_n
    end = tl.minimum(m + block_m, time)
    first, full = 0, 0
    if packed:
        first = tl.min(tl.where(row < time, start, row), 0) // block_n * block_n
        full = tl.minimum((tl.max(start, 0) + block_n - 1) // block_n * block_n, diagonal)
    return first, full, diagonal, end


@triton.jit
def masked_score(score, query, key, start, masked: tl.constexpr):
    # query, key and start broadcast to the score's shape.
    if masked:
        score = tl.where((key <= query) & (key >= start), score, float("-inf"))
    return score


@triton.jit
def online_softmax(score, peak, total):
    higher = tl.maximum(peak, tl.max(score, 1))
    weights = tl.exp2(score - higher[:, None])
    shrink = tl.exp2(peak - higher)
    return weights, shrink, higher, total * shrink + tl.sum(weights, 1)
