"""The program of one token's attention over pages or rings, behind a prefix; `triton` says how it is launched."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from nlrl.kernels.paged_attention.reference import PAGE

_PAGE = tl.constexpr(PAGE)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _angles(cos_ptr, sin_ptr, row, angle_row, d, inside, half: tl.constexpr):
    """Of every channel; the sine with the sign that its partner gets."""
    at = row * angle_row + d % half
    cos = tl.load(cos_ptr + at, mask=inside, other=0.0)
    sin = tl.load(sin_ptr + at, mask=inside, other=0.0)
    return cos, tl.where(d < half, -sin, sin)


@triton.jit
def _turned(at, partner, inside, cos, sin, dtype: tl.constexpr):
    """Vectors turned on their way from memory; partner: where each channel's other one lies."""
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(partner, mask=inside, other=0.0).to(tl.float32)
    return (a * cos + b * sin).to(dtype)


@triton.jit
def _absorb(
    query, of_key_head, keys_at, keys_head, values_at, seen, peak, total, y, scale,
    key_dim: tl.constexpr, value_dim: tl.constexpr, key_heads: tl.constexpr, key_block: tl.constexpr,
    value_block: tl.constexpr, tile: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """A block of tokens joins the softmax. keys_at, values_at: `(block,)`, where their vectors of this head begin."""
    dtype = query.dtype
    kd, vd = tl.arange(0, key_block), tl.arange(0, value_block)
    scores = tl.zeros((tile, block), tl.float32)
    for k in tl.static_range(key_heads):
        at = keys_at[None, :] + k * keys_head + kd[:, None]
        keys = tl.load(at, mask=seen[None, :] & (kd < key_dim)[:, None], other=0.0).to(dtype)
        if key_heads == 1:
            scores = tl.dot(query, keys, acc=scores, input_precision="ieee")
        else:
            own = tl.where((of_key_head == k)[:, None], query, 0.0).to(dtype)
            scores = tl.dot(own, keys, acc=scores, input_precision="ieee")
    scores = tl.where(seen[None, :], scores * scale * _LOG2_E, float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, 1))
    anchor = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen so far
    weights = tl.exp2(scores - anchor[:, None])
    shrink = tl.exp2(peak - anchor)
    total = total * shrink + tl.sum(weights, 1)
    at = values_at[:, None] + vd[None, :]
    values = tl.load(at, mask=seen[:, None] & (vd < value_dim)[None, :], other=0.0).to(dtype)
    y = tl.dot(weights.to(dtype), values, acc=y * shrink[:, None], input_precision="ieee")
    return higher, total, y


@triton.jit
def _merge(
    part_ptr, weight_ptr, out_ptr, row_head, out_at, filled, used,
    value_dim: tl.constexpr, parts: tl.constexpr, tile: tl.constexpr, value_block: tl.constexpr,
    block_parts: tl.constexpr, parts_at_once: tl.constexpr,
):  # fmt: skip
    """All parts of one row's heads, in their order whoever is last: equal inputs give equal bits."""
    vd, part = tl.arange(0, value_block), tl.arange(0, block_parts)
    seen = filled[:, None] & (part < used)[None, :]
    at = row_head[:, None] * parts + part[None, :]
    weight = tl.load(weight_ptr + at, mask=seen, other=float("-inf"), cache_modifier=".cg")
    peak = tl.max(weight, 1)
    peak = tl.where(filled, peak, 0.0)
    total = tl.where(filled, tl.sum(tl.exp2(weight - peak[:, None]), 1), 1.0)
    y = tl.zeros((tile, value_block), tl.float32)
    for first in range(0, used, parts_at_once):
        some = first + tl.arange(0, parts_at_once)
        there = filled[:, None] & (some < used)[None, :]
        some_at = row_head[:, None] * parts + some[None, :]
        factor = tl.load(weight_ptr + some_at, mask=there, other=float("-inf"), cache_modifier=".cg")
        factor = tl.exp2(factor - peak[:, None])
        y_at = some_at[:, :, None] * value_dim + vd[None, None, :]
        inside = there[:, :, None] & (vd < value_dim)[None, None, :]
        one = tl.load(part_ptr + y_at, mask=inside, other=0.0, cache_modifier=".cg")
        y += tl.sum(one * factor[:, :, None], 1)
    y = (y / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_at[:, None] + vd[None, :], y, mask=filled[:, None] & (vd < value_dim)[None, :])


@triton.jit(do_not_specialize=["shortest", "table_row", "slots", "reach", "prefix"])
def attend_one(
    query_ptr, key_ptr, value_ptr, keys_ptr, values_ptr, first_key_ptr, first_value_ptr, table_ptr, positions_ptr,
    cos_ptr, sin_ptr, part_ptr, weight_ptr, count_ptr, out_ptr,
    query_row, query_head, key_row, key_head, value_row, value_head, keys_row, keys_head, keys_token, values_row,
    values_head, values_token, first_key_head, first_key_token, first_value_head, first_value_token, table_row,
    angle_row, scale, shortest, slots, reach, prefix,
    key_dim: tl.constexpr, value_dim: tl.constexpr, query_heads: tl.constexpr, key_heads: tl.constexpr,
    ring: tl.constexpr, given: tl.constexpr, writes: tl.constexpr, behind: tl.constexpr, turns: tl.constexpr,
    parts: tl.constexpr, tile: tl.constexpr, key_block: tl.constexpr, value_block: tl.constexpr, block: tl.constexpr,
    block_parts: tl.constexpr, parts_at_once: tl.constexpr,
):  # fmt: skip
    row, v_head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions_ptr + row)
    here = tl.maximum(position, 0).to(tl.int32)
    old = tl.minimum(here, slots) if ring else here
    if behind:
        old += prefix
    # Each part has whole blocks of what is seen besides the token itself: the prefix, then slots or pages.
    length = tl.maximum(shortest, tl.cdiv(tl.cdiv(old, parts), block) * block)
    start = part * length
    if (part > 0) & (start >= old):
        return
    end = tl.minimum(start + length, old)
    first_own = 0
    if behind:
        first_own += prefix

    dtype: tl.constexpr = keys_ptr.dtype.element_ty
    half: tl.constexpr = key_dim // 2
    i, kd, vd = tl.arange(0, tile), tl.arange(0, key_block), tl.arange(0, value_block)
    in_key, in_value = kd < key_dim, vd < value_dim
    head = v_head * (query_heads * key_heads) + i
    filled = i < query_heads * key_heads
    of_key_head = i // query_heads
    query_at = query_ptr + row * query_row + head[:, None] * query_head
    inside = filled[:, None] & in_key[None, :]
    partner = (kd + half) % key_dim
    if turns:
        cos, sin = _angles(cos_ptr, sin_ptr, row, angle_row, kd, in_key, half)
        query = _turned(
            query_at + kd[None, :], query_at + partner[None, :], inside, cos[None, :], sin[None, :], dtype
        )  # fmt: skip
    else:
        query = tl.load(query_at + kd[None, :], mask=inside, other=0.0).to(dtype)

    if ring:
        key_slot = keys_ptr + row * keys_row + (here % slots) * keys_token
        value_slot = values_ptr + row * values_row + (here % slots) * values_token
    else:
        last = tl.load(table_ptr + row * table_row + here // _PAGE, mask=position >= 0, other=0)
        key_slot = keys_ptr + last * keys_row + (here % _PAGE) * keys_token
        value_slot = values_ptr + last * values_row + (here % _PAGE) * values_token
    peak = tl.full((tile,), float("-inf"), tl.float32)
    total = tl.zeros((tile,), tl.float32)
    y = tl.zeros((tile, value_block), tl.float32)
    if part == 0:  # the new token never makes a round through memory
        score = tl.zeros((tile,), tl.float32)
        for k in tl.static_range(key_heads):
            k_head = v_head * key_heads + k
            if given:
                key_at = key_ptr + row * key_row + k_head * key_head
                if turns:
                    key = _turned(key_at + kd, key_at + partner, in_key, cos, sin, dtype)
                else:
                    key = tl.load(key_at + kd, mask=in_key, other=0.0).to(dtype)
            else:
                key = tl.load(key_slot + k_head * keys_head + kd, mask=in_key, other=0.0)
            one = tl.sum(query.to(tl.float32) * key.to(tl.float32)[None, :], 1)
            score = tl.where(of_key_head == k, one, score)
        if given:
            value_at = value_ptr + row * value_row + v_head * value_head + vd
            value = tl.load(value_at, mask=in_value, other=0.0).to(dtype)
        else:
            value = tl.load(value_slot + v_head * values_head + vd, mask=in_value, other=0.0)
        peak = score * scale * _LOG2_E
        total += 1.0
        y += value.to(tl.float32)[None, :]

    if behind:
        first_key_ptr += v_head * key_heads * first_key_head
        first_value_ptr += v_head * first_value_head
        for first in range(start, tl.minimum(end, prefix), block):
            token = first + tl.arange(0, block)
            peak, total, y = _absorb(
                query, of_key_head, first_key_ptr + token * first_key_token, first_key_head,
                first_value_ptr + token * first_value_token, token < tl.minimum(end, prefix), peak, total, y, scale,
                key_dim, value_dim, key_heads, key_block, value_block, tile, block,
            )  # fmt: skip
    for first in range(tl.maximum(start - first_own, 0), end - first_own, block):
        token = first + tl.arange(0, block)
        seen = token < end - first_own
        if ring:
            keys_at = keys_ptr + row * keys_row + token * keys_token
            values_at = values_ptr + row * values_row + token * values_token
            near = (here - 1 - token) % slots < reach
        else:
            page = tl.load(table_ptr + row * table_row + token // _PAGE, mask=seen, other=0)
            keys_at = keys_ptr + page * keys_row + (token % _PAGE) * keys_token
            values_at = values_ptr + page * values_row + (token % _PAGE) * values_token
            near = seen
        peak, total, y = _absorb(
            query, of_key_head, keys_at + v_head * key_heads * keys_head, keys_head, values_at + v_head * values_head,
            seen & near, peak, total, y, scale,
            key_dim, value_dim, key_heads, key_block, value_block, tile, block,
        )  # fmt: skip

    if writes:
        # In a ring that has gone round, the part that has read the oldest token writes over it.
        slot = here % slots + first_own if ring else 0
        alone = (here < slots) if ring else True
        mine = (part == 0) if alone else (start <= slot) & (slot < end)
        if (position >= 0) & mine:
            tl.debug_barrier()  # all threads have read
            for k in tl.static_range(key_heads):
                k_head = v_head * key_heads + k
                key_at = key_ptr + row * key_row + k_head * key_head
                if turns:
                    key = _turned(key_at + kd, key_at + partner, in_key, cos, sin, dtype)
                else:
                    key = tl.load(key_at + kd, mask=in_key, other=0.0).to(dtype)
                tl.store(key_slot + k_head * keys_head + kd, key, mask=in_key)
            value_at = value_ptr + row * value_row + v_head * value_head + vd
            value = tl.load(value_at, mask=in_value, other=0.0).to(dtype)
            tl.store(value_slot + v_head * values_head + vd, value, mask=in_value)

    heads = query_heads * key_heads * tl.num_programs(1)
    row_head = row * heads + head
    into = filled[:, None] & in_value[None, :]
    y = y / tl.where(total > 0, total, 1.0)[:, None]  # a part that sees nothing has no weight
    used = tl.maximum(tl.cdiv(old, length), 1)
    if parts == 1 or used == 1:
        tl.store(out_ptr + row_head[:, None] * value_dim + vd[None, :], y.to(out_ptr.dtype.element_ty), mask=into)
    else:
        at = row_head * parts + part
        tl.store(part_ptr + at[:, None] * value_dim + vd[None, :], y, mask=into)
        tl.store(weight_ptr + at, peak + tl.log2(tl.where(total > 0, total, 1.0)), mask=filled)
        tl.debug_barrier()  # all threads have written before one says so
        group = row * tl.num_programs(1) + v_head
        if tl.atomic_add(count_ptr + group, 1, sem="acq_rel") == used - 1:
            tl.store(count_ptr + group, 0)  # for the next launch
            _merge(part_ptr, weight_ptr, out_ptr, row_head, row_head * value_dim, filled, used, value_dim, parts, tile,
                   value_block, block_parts, parts_at_once)  # fmt: skip
