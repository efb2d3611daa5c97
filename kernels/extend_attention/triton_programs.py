"""The program of several tokens' attention over older text and each other; `triton` says how it is launched."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from nlrl.kernels.attention_tiles import LOG2_E, LOWEST, dot, online_softmax
from nlrl.kernels.paged_attention.reference import PAGE

_PAGE = tl.constexpr(PAGE)


@triton.jit
def _lines(lines, inside, width: tl.constexpr, block: tl.constexpr, bounded: tl.constexpr):
    # Vectors from a pointer to each; zeros where not inside.
    column = tl.arange(0, block)
    at = lines[:, None] + column[None, :]
    if bounded:
        values = tl.load(at, mask=inside[:, None] & (column < width)[None, :], other=0.0)
    elif width == block:
        values = tl.load(at)
    else:
        values = tl.load(at, mask=(column < width)[None, :], other=0.0)
    return values


@triton.jit
def _absorb(
    y, peak, total, q, k_at, v_at, inside, seen, scale,
    D: tl.constexpr, block_d: tl.constexpr, V: tl.constexpr, block_v: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    # A tile of keys joins the softmax.
    k = _lines(k_at, inside, D, block_d, masked)
    v = _lines(v_at, inside, V, block_v, masked)
    s = dot(q, tl.trans(k), tl.zeros((q.shape[0], k.shape[0]), tl.float32))
    if masked:
        s = tl.where(seen, s, float("-inf"))
    w, shrink, peak, total = online_softmax(s, peak, total, scale)
    return dot(w.to(v.dtype), v, y * shrink[:, None]), peak, total


@triton.jit
def _older(
    y, peak, total, q, k_ptr, v_ptr, table_ptr, position, begin, end, lowest, k_row, k_slot, v_row, v_slot, slots,
    reach, scale, D: tl.constexpr, block_d: tl.constexpr, V: tl.constexpr, block_v: tl.constexpr,
    block_n: tl.constexpr, paged: tl.constexpr, near: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    # Text positions from `begin` up to `end`, whole tiles; masked: from `lowest` on, and within reach.
    for n in range(begin, end, block_n):
        t = n + tl.arange(0, block_n)
        inside = t >= lowest
        at = tl.maximum(t, 0) if masked else t
        if paged:
            if masked:
                page = tl.load(table_ptr + at // _PAGE, mask=inside, other=0)
            else:
                page = tl.load(table_ptr + at // _PAGE)
            k_at, v_at = k_ptr + page * k_row + at % _PAGE * k_slot, v_ptr + page * v_row + at % _PAGE * v_slot
        else:
            k_at, v_at = k_ptr + at % slots * k_slot, v_ptr + at % slots * v_slot
        seen = inside[None, :]
        if near:
            seen = seen & (position[:, None] - t[None, :] <= reach)
        y, peak, total = _absorb(
            y, peak, total, q, k_at, v_at, inside, seen, scale, D, block_d, V, block_v, masked
        )  # fmt: skip
    return y, peak, total


@triton.jit
def _newer(
    y, peak, total, q, k_ptr, v_ptr, token, begin, end, last, k_row, v_row, reach, scale,
    D: tl.constexpr, block_d: tl.constexpr, V: tl.constexpr, block_v: tl.constexpr, block_n: tl.constexpr,
    causal: tl.constexpr, near: tl.constexpr,
):  # fmt: skip
    # Places of the call from `begin` up to `end`; causal: masked, and nothing behind `last` is read.
    for n in range(begin, end, block_n):
        j = n + tl.arange(0, block_n)
        inside = j <= last
        seen = j[None, :] <= token[:, None]
        if near:
            seen = seen & (token[:, None] - j[None, :] <= reach)
        y, peak, total = _absorb(
            y, peak, total, q, k_ptr + j * k_row, v_ptr + j * v_row, inside, seen, scale, D, block_d, V, block_v, causal
        )  # fmt: skip
    return y, peak, total


@triton.jit(do_not_specialize=["time", "table_row", "slots", "reach", "prefix"])
def extend(
    q_ptr, k_ptr, v_ptr, keys_ptr, values_ptr, pk_ptr, pv_ptr, positions_ptr, start_ptr, table_ptr, y_ptr,
    time, table_row, slots, reach, prefix, q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head,
    keys_row, keys_head, keys_slot, values_row, values_head, values_slot, scale,
    kv_heads: tl.constexpr, group: tl.constexpr, key_heads: tl.constexpr, D: tl.constexpr, block_d: tl.constexpr,
    V: tl.constexpr, block_v: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, paged: tl.constexpr,
    near: tl.constexpr, behind: tl.constexpr,
):  # fmt: skip
    batch, kv_head = (tl.program_id(1) // kv_heads).to(tl.int64), tl.program_id(1) % kv_heads
    v_of = kv_head // key_heads
    # Rows of the tile are tokens, and of each the heads that read this key head.
    line = (tl.num_programs(0) - 1 - tl.program_id(0)) * block_m + tl.arange(0, block_m)  # the longest first
    token, head = line // group, line % group
    filled = token < time
    position = tl.load(positions_ptr + batch * time + token, mask=filled, other=-1).to(tl.int32)
    real = position >= 0
    earliest, latest = tl.min(tl.where(real, token, time), 0), tl.max(tl.where(real, token, -1), 0)
    highest = tl.max(position, 0)

    y = tl.zeros((block_m, block_v), tl.float32)
    peak, total = tl.full((block_m,), LOWEST, tl.float32), tl.zeros((block_m,), tl.float32)
    if latest >= 0:
        scale = scale * LOG2_E
        old = tl.load(start_ptr + batch).to(tl.int32)
        padded = latest - (highest - old)  # places of the call before the row's first token
        q_ptr += batch * q_batch + kv_head * group * q_head
        q = _lines(q_ptr + token * q_row + head * q_head, filled, D, block_d, True)
        if behind:
            for n in range(0, prefix, block_n):
                j = n + tl.arange(0, block_n)
                y, peak, total = _absorb(
                    y, peak, total, q, pk_ptr + (kv_head * prefix + j) * D, pv_ptr + (v_of * prefix + j) * V,
                    j < prefix, (j < prefix)[None, :], scale, D, block_d, V, block_v, True,
                )  # fmt: skip

        # Older text, in tiles that end with it: what is masked is in the first of them.
        keys_ptr += kv_head * keys_head
        values_ptr += v_of * values_head
        lowest = 0
        if not paged:
            keys_ptr += batch * keys_row
            values_ptr += batch * values_row
            lowest = tl.maximum(old - slots, 0)
        seen_by_all = lowest
        if near:
            lowest = tl.maximum(lowest, old + earliest - padded - reach)
            seen_by_all = tl.maximum(lowest, highest - reach)
        begin = old - tl.cdiv(tl.maximum(old - lowest, 0), block_n) * block_n
        whole = old - tl.maximum(old - seen_by_all, 0) // block_n * block_n
        table = table_ptr + batch * table_row
        y, peak, total = _older(
            y, peak, total, q, keys_ptr, values_ptr, table, position, begin, whole, lowest, keys_row, keys_slot,
            values_row, values_slot, slots, reach, scale, D, block_d, V, block_v, block_n, paged, near, True,
        )  # fmt: skip
        y, peak, total = _older(
            y, peak, total, q, keys_ptr, values_ptr, table, position, whole, old, lowest, keys_row, keys_slot,
            values_row, values_slot, slots, reach, scale, D, block_d, V, block_v, block_n, paged, near, False,
        )  # fmt: skip

        # The call's own tokens, in tiles that begin with the first that is seen.
        k_ptr += batch * k_batch + kv_head * k_head
        v_ptr += batch * v_batch + v_of * v_head
        first, full = padded, padded
        if near:
            first = tl.maximum(first, earliest - reach)
            full = first + tl.cdiv(tl.maximum(latest - reach - first, 0), block_n) * block_n
            full = tl.minimum(full, latest + 1)
            y, peak, total = _newer(
                y, peak, total, q, k_ptr, v_ptr, token, first, full, latest, k_row, v_row, reach, scale,
                D, block_d, V, block_v, block_n, True, near,
            )  # fmt: skip
        diagonal = full + tl.maximum(earliest + 1 - full, 0) // block_n * block_n
        y, peak, total = _newer(
            y, peak, total, q, k_ptr, v_ptr, token, full, diagonal, latest, k_row, v_row, reach, scale,
            D, block_d, V, block_v, block_n, False, near,
        )  # fmt: skip
        y, peak, total = _newer(
            y, peak, total, q, k_ptr, v_ptr, token, diagonal, latest + 1, latest, k_row, v_row, reach, scale,
            D, block_d, V, block_v, block_n, True, near,
        )  # fmt: skip

    y = tl.where(real[:, None], y / tl.where(real, total, 1.0)[:, None], 0.0)
    vd = tl.arange(0, block_v)
    at = ((batch * time + token) * kv_heads * group + kv_head * group + head) * V
    inside = filled[:, None] & (vd < V)[None, :]
    tl.store(y_ptr + at[:, None] + vd[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)
