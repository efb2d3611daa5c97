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
def dot_onto(a, b, row):
    # a b + row[None, :]. Begun with the row, the sum needs no registers for it later; but its large numbers cost bits
    # that float32 would miss.
    if a.dtype == tl.float32:
        product = dot(a, b, tl.zeros((a.shape[0], b.shape[1]), tl.float32)) + row[None, :]
    else:
        product = tl.dot(a, b, acc=tl.zeros((a.shape[0], b.shape[1]), tl.float32) + row[None, :])
    return product


@triton.jit
def side_by_side(first, second):
    # Columns of one tile, then those of another, as one tile.
    both = tl.permute(tl.join(first, second), (0, 2, 1))
    return tl.reshape(both, (first.shape[0], 2 * first.shape[1]))


@triton.jit
def taken_apart(both):
    # The left and the right half of a tile's columns. Registers hold them, so nothing moves.
    return tl.split(tl.permute(tl.reshape(both, (both.shape[0], 2, both.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def load_tile(ptr, row, stride, rows, width: tl.constexpr, block: tl.constexpr, bounded: tl.constexpr):
    # `width` columns of some rows; beyond `rows`, zeros.
    return load_lines(ptr + row * stride, row, rows, width, block, bounded)


@triton.jit
def load_lines(lines, row, rows, width: tl.constexpr, block: tl.constexpr, bounded: tl.constexpr):
    # The same from a pointer to each row.
    column = tl.arange(0, block)
    at = lines[:, None] + column[None, :]
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
def line_of(time):
    # Of numbers of queries, as `attention_launch.line_of` has it: a multiple of 16, which the compiler sees, so that
    # their loads are as wide for any time. `prepare` fills what is behind the last query.
    return (time + 15) // 16 * 16


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
def query_span(ends_ptr, n, time, block_m: tl.constexpr, block_n: tl.constexpr, packed: tl.constexpr):
    # Queries that see a tile of keys: tiles on the diagonal begin at `first`, those that see all keys at `below`, those
    # that see some at `full`; and how many tiles each part has.
    first, below = n // block_m * block_m, (n + block_n + block_m - 1) // block_m * block_m
    full, end = time, time
    if packed:
        full = tl.load(ends_ptr + n)
        end = tl.load(ends_ptr + tl.minimum(n + block_n, time) - 1)
    full = tl.maximum(full // block_m * block_m, below)
    near = tl.cdiv(tl.minimum(below, end) - first, block_m)
    far = tl.cdiv(tl.maximum(end - full, 0), block_m)
    return first, below, full, near, (full - below) // block_m, far


@triton.jit
def query_tile(step, first, near, second, tiles, group: tl.constexpr, block_m: tl.constexpr):
    # Of a loop over `near` tiles from `first` on and others from `second` on, `tiles` in all, for each head of a group:
    # which head a step has, and where its tile begins.
    head, tile = 0 * step, step
    if group > 1:
        head = step // tl.maximum(tiles, 1)
        tile = step - head * tiles
    return head, tl.where(tile < near, first + tile * block_m, second + (tile - near) * block_m)


@triton.jit
def masked_score(score, query, key, start, masked: tl.constexpr):
    # query, key and start broadcast to the score's shape.
    if masked:
        score = tl.where((key <= query) & (key >= start), score, float("-inf"))
    return score


@triton.jit
def online_softmax(score, peak, total, scale):
    # Peaks are scaled, scores are not: one multiplication and addition a score instead of two multiplications.
    higher = tl.maximum(peak, tl.max(score, 1) * scale)
    weights = tl.exp2(score * scale - higher[:, None])
    shrink = tl.exp2(peak - higher)
    return weights, shrink, higher, total * shrink + tl.sum(weights, 1)
