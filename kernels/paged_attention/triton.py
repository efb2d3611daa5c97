"""Paged attention of one new token a row for CUDA: a program reads keys and values of one value head of one row, once.

1. All query heads that read a value head are the rows of one matrix product, filled up to 16. Where several key heads
   share a value head, each has its product, with the query heads of the others set to zero; their sum has every score.
2. A long row is divided over several programs (flash decoding). How many are launched depends on shapes alone, so that
   a CUDA graph holds for rows of every length; those without tokens leave at once. Their parts are merged by a second
   kernel, which one part does not need.
3. The new token never makes a round through memory: the first program of a row starts its softmax with it.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from nlrl.kernels.attention_launch import even
from nlrl.kernels.paged_attention.reference import PAGE, HeadGroups
from nlrl.kernels.paged_attention.reference import paged_attention as reference

PROGRAMS_PER_PROCESSOR = 4
"""Wanted: enough to hide memory latency."""
SHORT_PART, LONG_PART = 128, 1024
"""Tokens that are worth a program while processors are idle, and while all are busy."""
MOST_PARTS = 32
BLOCK_BYTES = 16384
"""Of keys or values a program holds at a time."""
_PAGE = tl.constexpr(PAGE)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _part_length(old, shortest, parts: tl.constexpr, block: tl.constexpr):
    """Tokens of each part of `old` ones: whole blocks."""
    return tl.maximum(shortest, tl.cdiv(tl.cdiv(old, parts), block) * block)


@triton.jit(do_not_specialize=["shortest", "table_row"])
def _attend(
    query_ptr, key_ptr, value_ptr, keys_ptr, values_ptr, table_ptr, positions_ptr, out_ptr, weight_ptr,
    query_row, query_head, key_row, key_head, value_row, value_head, keys_page, keys_head, keys_token, values_page,
    values_head, values_token, table_row, out_row, out_head, out_part, scale, shortest,
    key_dim: tl.constexpr, value_dim: tl.constexpr, query_heads: tl.constexpr, key_heads: tl.constexpr,
    writes: tl.constexpr, parts: tl.constexpr, tile: tl.constexpr, key_block: tl.constexpr,
    value_block: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, v_head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions_ptr + row)
    old = tl.maximum(position, 0).to(tl.int32)
    length = _part_length(old, shortest, parts, block)
    start = part * length
    if (part > 0) & (start >= old):
        return
    end = tl.minimum(start + length, old)

    dtype = keys_ptr.dtype.element_ty
    i, kd, vd = tl.arange(0, tile), tl.arange(0, key_block), tl.arange(0, value_block)
    head = v_head * (query_heads * key_heads) + i
    filled = i < query_heads * key_heads
    of_key_head = i // query_heads
    query_at = query_ptr + row * query_row + head[:, None] * query_head + kd[None, :]
    query = tl.load(query_at, mask=filled[:, None] & (kd < key_dim)[None, :], other=0.0).to(dtype)

    peak = tl.full((tile,), float("-inf"), tl.float32)
    total = tl.zeros((tile,), tl.float32)
    y = tl.zeros((tile, value_block), tl.float32)
    if part == 0:
        last = tl.load(table_ptr + row * table_row + old // _PAGE, mask=position >= 0, other=0)
        key_slot = keys_ptr + last * keys_page + (old % _PAGE) * keys_token + kd
        value_slot = values_ptr + last * values_page + v_head * values_head + (old % _PAGE) * values_token + vd
        score = tl.zeros((tile,), tl.float32)
        for k in tl.static_range(key_heads):
            k_head = v_head * key_heads + k
            if writes:
                key = tl.load(key_ptr + row * key_row + k_head * key_head + kd, mask=kd < key_dim, other=0.0).to(dtype)
                tl.store(key_slot + k_head * keys_head, key, mask=kd < key_dim)
            else:
                key = tl.load(key_slot + k_head * keys_head, mask=kd < key_dim, other=0.0)
            one = tl.sum(query.to(tl.float32) * key.to(tl.float32)[None, :], 1)
            score = tl.where(of_key_head == k, one, score)
        if writes:
            value = tl.load(value_ptr + row * value_row + v_head * value_head + vd, mask=vd < value_dim, other=0.0)
            value = value.to(dtype)
            tl.store(value_slot, value, mask=vd < value_dim)
        else:
            value = tl.load(value_slot, mask=vd < value_dim, other=0.0)
        peak = score * scale * _LOG2_E
        total += 1.0
        y += value.to(tl.float32)[None, :]

    for first in range(start, end, block):
        token = first + tl.arange(0, block)
        stored = token < end
        page = tl.load(table_ptr + row * table_row + token // _PAGE, mask=stored, other=0)
        keys_slot = keys_ptr + page * keys_page + v_head * key_heads * keys_head + (token % _PAGE) * keys_token
        scores = tl.zeros((tile, block), tl.float32)
        for k in tl.static_range(key_heads):
            keys_at = keys_slot[None, :] + k * keys_head + kd[:, None]
            keys = tl.load(keys_at, mask=stored[None, :] & (kd < key_dim)[:, None], other=0.0)
            if key_heads == 1:
                scores = tl.dot(query, keys, acc=scores, input_precision="ieee")
            else:
                own = tl.where((of_key_head == k)[:, None], query, 0.0).to(dtype)
                scores = tl.dot(own, keys, acc=scores, input_precision="ieee")
        scores = tl.where(stored[None, :], scores * scale * _LOG2_E, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(peak - higher)
        peak = higher
        total = total * shrink + tl.sum(weights, 1)
        values_slot = values_ptr + page * values_page + v_head * values_head + (token % _PAGE) * values_token
        values_at = values_slot[:, None] + vd[None, :]
        values = tl.load(values_at, mask=stored[:, None] & (vd < value_dim)[None, :], other=0.0)
        y = tl.dot(weights.to(dtype), values, acc=y * shrink[:, None], input_precision="ieee")

    at = row * out_row + head * out_head + part * out_part
    y = (y / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + at[:, None] + vd[None, :], y, mask=filled[:, None] & (vd < value_dim)[None, :])
    if parts > 1:
        heads = query_heads * key_heads * tl.num_programs(1)
        tl.store(weight_ptr + (row * heads + head) * parts + part, peak + tl.log2(total), mask=filled)


@triton.jit(do_not_specialize=["shortest"])
def _merge(
    y_ptr, weight_ptr, positions_ptr, out_ptr, shortest, heads,
    value_dim: tl.constexpr, parts: tl.constexpr, block: tl.constexpr, tile: tl.constexpr, value_block: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    old = tl.maximum(tl.load(positions_ptr + row), 0).to(tl.int32)
    part, vd = tl.arange(0, tile), tl.arange(0, value_block)
    used = (part < parts) & ((part == 0) | (part * _part_length(old, shortest, parts, block) < old))
    at = (row * heads + head) * parts + part
    weight = tl.load(weight_ptr + at, mask=used, other=float("-inf"))
    weight = tl.exp2(weight - tl.max(weight, 0))
    used_y = used[:, None] & (vd < value_dim)[None, :]
    y = tl.load(y_ptr + at[:, None] * value_dim + vd[None, :], mask=used_y, other=0.0)
    y = tl.sum(y * weight[:, None], 0) / tl.sum(weight, 0)
    at = (row * heads + head) * value_dim + vd
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=vd < value_dim)


def paged_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    positions: Tensor,
    scale: float | None = None,
) -> Tensor:
    """See `reference.paged_attention`, which also does float64. Vectors of keys and values must be contiguous."""
    if keys.dtype == torch.float64 or not query.shape[0]:
        return reference(query, key, value, keys, values, table, positions, scale)
    groups = HeadGroups.of(query, keys, values)
    if keys.stride(-1) != 1 or values.stride(-1) != 1 or keys.dtype != values.dtype:
        raise ValueError("keys and values must have one dtype and contiguous vectors")
    (rows, heads, key_dim), value_dim = query.shape, values.shape[-1]
    parts, shortest = _division(rows * groups.v_heads, PAGE * table.shape[1], _programs(query.device))
    out = query.new_empty((rows, heads, value_dim))
    y = query.new_empty((rows, heads, parts, value_dim), dtype=torch.float32) if parts > 1 else out[:, :, None]
    weight = query.new_empty((rows, heads, parts), dtype=torch.float32) if parts > 1 else out
    writes = key is not None and value is not None
    query, key, value = (even(query), even(key), even(value)) if writes else (even(query), query, query)
    table, positions = even(table), positions.contiguous()
    launch = _launch(groups, key_dim, value_dim, keys.element_size())
    with torch.cuda.device_of(query):
        _attend[(rows, groups.v_heads, parts)](
            query, key, value, keys, values, table, positions, y, weight, *query.stride()[:2], *key.stride()[:2],
            *value.stride()[:2], *keys.stride()[:3], *values.stride()[:3], table.stride(0), *y.stride()[:3],
            key_dim**-0.5 if scale is None else scale, shortest, key_dim, value_dim, groups.query_heads,
            groups.key_heads, writes, parts, **launch,
        )  # fmt: skip
        if parts > 1:
            shape = {"tile": triton.next_power_of_2(parts), "value_block": launch["value_block"], "num_warps": 4}
            _merge[(rows, heads)](
                y, weight, positions, out, shortest, heads, value_dim, parts, launch["block"], **shape
            )
    return out


def _division(programs: int, capacity: int, wanted: int) -> tuple[int, int]:
    """Parts a row is launched with and the fewest tokens of one, for rows of up to `capacity` tokens."""
    shortest = SHORT_PART if 2 * programs <= wanted else LONG_PART
    idle, long = min(wanted // programs, triton.cdiv(capacity, SHORT_PART)), triton.cdiv(capacity, LONG_PART)
    return max(1, min(MOST_PARTS, max(idle, long))), shortest


@cache
def _programs(device: torch.device) -> int:
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    return PROGRAMS_PER_PROCESSOR * processors


def _launch(groups: HeadGroups, key_dim: int, value_dim: int, size: int) -> dict[str, int]:
    key_block, value_block = (max(16, triton.next_power_of_2(dim)) for dim in (key_dim, value_dim))
    block = BLOCK_BYTES // (size * max(key_block * groups.key_heads, value_block))
    if size == 4:  # products without tensor cores hold their arguments in registers
        block //= 2
    return {
        "tile": max(16, triton.next_power_of_2(groups.query_heads * groups.key_heads)),
        "key_block": key_block,
        "value_block": value_block,
        "block": min(64, max(16, block)),
        "num_warps": 4,
        "num_stages": 3,
    }
