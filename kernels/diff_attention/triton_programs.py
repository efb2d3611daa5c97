"""The programs of `triton`; formulas in `reference`.

1. `forward`: a program owns some queries of one head. It runs over the keys they see with an online softmax for each
   map; a tile of V is read once for both. Subtraction, norm and scale are done before the one store.
2. `prepare`: the derivative of norm and scale, d1 and d2, row by row, and the program's part of dw.
3. `key_gradients`: a program owns some keys of one key head and runs over the queries that see them, of all heads of
   the group. Scores are transposed (keys are rows), so that no product needs a transposed map.
4. `query_gradients`: a program owns some queries of one head and runs over keys.

3 and 4 both compute scores and dP: 28 d FLOPs instead of 20 d, but no atomic additions, so equal inputs give equal
bits, and dQ needs no memory in float32.

A tile of scores without a mask takes fewer instructions, so loops have parts: a mask is applied where the diagonal, the
edge of a document or the end of a row is; never between them.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from nlrl.kernels.attention_tiles import (
    LOG2_E,
    LOWEST,
    dot,
    key_span,
    load_tile,
    masked_score,
    online_softmax,
    store_tile,
)


@triton.jit
def _read(
    y1, y2, peak1, peak2, total1, total2, q1, q2, k_ptr, v_ptr, row, start, first, end, time, k_row, k_head, v_row,
    scale, D: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    for n in range(first, end, block_n):
        key = n + tl.arange(0, block_n)
        k1 = load_tile(k_ptr, key, k_row, time, D, block_d, masked)
        k2 = load_tile(k_ptr + k_head, key, k_row, time, D, block_d, masked)
        v = load_tile(v_ptr, key, v_row, time, 2 * D, 2 * block_d, masked)
        s1 = dot(q1, tl.trans(k1), tl.zeros((q1.shape[0], block_n), tl.float32)) * scale
        s2 = dot(q2, tl.trans(k2), tl.zeros((q1.shape[0], block_n), tl.float32)) * scale
        s1 = masked_score(s1, row[:, None], key[None, :], start[:, None], masked)
        s2 = masked_score(s2, row[:, None], key[None, :], start[:, None], masked)
        w1, shrink1, peak1, total1 = online_softmax(s1, peak1, total1)
        w2, shrink2, peak2, total2 = online_softmax(s2, peak2, total2)
        y1 = dot(w1.to(v.dtype), v, y1 * shrink1[:, None])
        y2 = dot(w2.to(v.dtype), v, y2 * shrink2[:, None])
    return y1, y2, peak1, peak2, total1, total2


@triton.jit
def forward(
    q_ptr, k_ptr, v_ptr, lambda_ptr, weight_ptr, starts_ptr, y_ptr, o_ptr, o2_ptr, lse_ptr, time, heads,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, scale, output_scale, eps,
    group: tl.constexpr, D: tl.constexpr, block_d: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
    packed: tl.constexpr, keep: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    m = (tl.num_programs(1) - 1 - tl.program_id(1)) * block_m  # the longest first
    row = m + tl.arange(0, block_m)
    start = tl.zeros((block_m,), tl.int32)
    if packed:
        start = tl.load(starts_ptr + batch * time + row, mask=row < time, other=0)
    q_ptr += batch * q_batch + 2 * head * q_head
    k_ptr += batch * k_batch + 2 * (head // group) * k_head
    v_ptr += batch * v_batch + (head // group) * v_head
    q1 = load_tile(q_ptr, row, q_row, time, D, block_d, True)
    q2 = load_tile(q_ptr + q_head, row, q_row, time, D, block_d, True)
    y1 = tl.zeros((block_m, 2 * block_d), tl.float32)
    y2 = tl.zeros((block_m, 2 * block_d), tl.float32)
    peak1, peak2 = tl.full((block_m,), LOWEST, tl.float32), tl.full((block_m,), LOWEST, tl.float32)
    total1, total2 = tl.zeros((block_m,), tl.float32), tl.zeros((block_m,), tl.float32)
    scale = scale * LOG2_E
    first, full, diagonal, end = key_span(start, row, m, time, block_m, block_n, packed)
    if packed:
        y1, y2, peak1, peak2, total1, total2 = _read(
            y1, y2, peak1, peak2, total1, total2, q1, q2, k_ptr, v_ptr, row, start, first, full, time,
            k_row, k_head, v_row, scale, D, block_d, block_n, True,
        )  # fmt: skip
    y1, y2, peak1, peak2, total1, total2 = _read(
        y1, y2, peak1, peak2, total1, total2, q1, q2, k_ptr, v_ptr, row, start, full, diagonal, time,
        k_row, k_head, v_row, scale, D, block_d, block_n, False,
    )  # fmt: skip
    y1, y2, peak1, peak2, total1, total2 = _read(
        y1, y2, peak1, peak2, total1, total2, q1, q2, k_ptr, v_ptr, row, start, tl.maximum(diagonal, first), end, time,
        k_row, k_head, v_row, scale, D, block_d, block_n, True,
    )  # fmt: skip

    y2 = y2 / total2[:, None]
    y1 = y1 / total1[:, None] - tl.load(lambda_ptr) * y2
    column = tl.arange(0, 2 * block_d)
    weight = tl.load(weight_ptr + column, mask=column < 2 * D, other=0.0).to(tl.float32) * output_scale
    norm = tl.rsqrt(tl.sum(y1 * y1, 1) / (2 * D) + eps)
    at, line = (batch * time * heads + head) * 2 * D, heads * 2 * D
    store_tile(y_ptr + at, row, line, time, y1 * norm[:, None] * weight[None, :], 2 * D, 2 * block_d)
    if keep:
        store_tile(o_ptr + at, row, line, time, y1, 2 * D, 2 * block_d)
        store_tile(o2_ptr + at, row, line, time, y2, 2 * D, 2 * block_d)
        lse_ptr += (batch * heads + head) * 2 * time + row
        tl.store(lse_ptr, peak1 + tl.log2(total1), mask=row < time)
        tl.store(lse_ptr + time, peak2 + tl.log2(total2), mask=row < time)


@triton.jit
def prepare(
    dy_ptr, o_ptr, o2_ptr, lambda_ptr, weight_ptr, do_ptr, delta_ptr, dweight_ptr, time, heads, output_scale, eps,
    D: tl.constexpr, block_d: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    row, column = tl.program_id(1) * tile + tl.arange(0, tile), tl.arange(0, 2 * block_d)
    at, line = (batch * time * heads + head) * 2 * D, heads * 2 * D
    dy = load_tile(dy_ptr + at, row, line, time, 2 * D, 2 * block_d, True).to(tl.float32) * output_scale
    o = load_tile(o_ptr + at, row, line, time, 2 * D, 2 * block_d, True).to(tl.float32)
    o2 = load_tile(o2_ptr + at, row, line, time, 2 * D, 2 * block_d, True).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column < 2 * D, other=0.0).to(tl.float32)
    norm = tl.rsqrt(tl.sum(o * o, 1) / (2 * D) + eps)[:, None]
    n, g = o * norm, dy * weight[None, :]
    do = norm * (g - n * (tl.sum(g * n, 1) / (2 * D))[:, None])
    do = do.to(do_ptr.dtype.element_ty)
    store_tile(do_ptr + at, row, line, time, do, 2 * D, 2 * block_d)
    do = do.to(tl.float32)  # as rounded: dP is made of it too, and what they share cancels
    delta2 = tl.sum(do * o2, 1)
    delta1 = tl.sum(do * o, 1) + tl.load(lambda_ptr) * delta2
    delta_ptr += (batch * heads + head) * 2 * time + row
    tl.store(delta_ptr, delta1, mask=row < time)
    tl.store(delta_ptr + time, delta2, mask=row < time)
    part = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(dweight_ptr + part * 2 * D + column, tl.sum(dy * n, 0), mask=column < 2 * D)


@triton.jit
def _to_keys(
    dk1, dk2, dv, k1, k2, v, q_ptr, do_ptr, lse_ptr, delta_ptr, starts_ptr, key, lambda_, first, end, time,
    q_row, q_head, do_row, scale, D: tl.constexpr, block_d: tl.constexpr, block_m: tl.constexpr, packed: tl.constexpr,
    masked: tl.constexpr,
):  # fmt: skip
    for m in range(first, end, block_m):
        row = m + tl.arange(0, block_m)
        q1 = load_tile(q_ptr, row, q_row, time, D, block_d, masked)
        q2 = load_tile(q_ptr + q_head, row, q_row, time, D, block_d, masked)
        do = load_tile(do_ptr, row, do_row, time, 2 * D, 2 * block_d, masked)
        inside = row < time
        lse1 = tl.load(lse_ptr + row, mask=inside, other=float("inf"))
        lse2 = tl.load(lse_ptr + time + row, mask=inside, other=float("inf"))
        delta1 = tl.load(delta_ptr + row, mask=inside, other=0.0)
        delta2 = tl.load(delta_ptr + time + row, mask=inside, other=0.0)
        start = tl.zeros((block_m,), tl.int32)
        if packed and masked:
            start = tl.load(starts_ptr + row, mask=inside, other=0)
        s1 = dot(k1, tl.trans(q1), tl.zeros((k1.shape[0], block_m), tl.float32)) * scale
        s2 = dot(k2, tl.trans(q2), tl.zeros((k1.shape[0], block_m), tl.float32)) * scale
        s1 = masked_score(s1, row[None, :], key[:, None], start[None, :], masked)
        s2 = masked_score(s2, row[None, :], key[:, None], start[None, :], masked)
        p1, p2 = tl.exp2(s1 - lse1[None, :]), tl.exp2(s2 - lse2[None, :])
        dv = dot((p1 - lambda_ * p2).to(do.dtype), do, dv)
        dp = dot(v, tl.trans(do), tl.zeros((k1.shape[0], block_m), tl.float32))
        dk1 = dot((p1 * (dp - delta1[None, :])).to(q1.dtype), q1, dk1)
        dk2 = dot((p2 * (dp - delta2[None, :])).to(q2.dtype), q2, dk2)
    return dk1, dk2, dv


@triton.jit
def key_gradients(
    q_ptr, k_ptr, v_ptr, lambda_ptr, starts_ptr, ends_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, time, heads,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, scale,
    group: tl.constexpr, D: tl.constexpr, block_d: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
    packed: tl.constexpr,
):  # fmt: skip
    kv_heads = heads // group
    batch, kv_head = (tl.program_id(0) // kv_heads).to(tl.int64), tl.program_id(0) % kv_heads
    n = tl.program_id(1) * block_n  # the longest first
    key = n + tl.arange(0, block_n)
    k_ptr += batch * k_batch + 2 * kv_head * k_head
    k1 = load_tile(k_ptr, key, k_row, time, D, block_d, True)
    k2 = load_tile(k_ptr + k_head, key, k_row, time, D, block_d, True)
    v = load_tile(v_ptr + batch * v_batch + kv_head * v_head, key, v_row, time, 2 * D, 2 * block_d, True)
    lambda_ = tl.load(lambda_ptr)
    dk1 = tl.zeros((block_n, block_d), tl.float32)
    dk2 = tl.zeros((block_n, block_d), tl.float32)
    dv = tl.zeros((block_n, 2 * block_d), tl.float32)

    # Queries on the diagonal, those that see all keys, and those that see some.
    first, below = n // block_m * block_m, (n + block_n + block_m - 1) // block_m * block_m
    full, end = time, time
    if packed:
        full = tl.load(ends_ptr + batch * time + n)
        end = tl.load(ends_ptr + batch * time + tl.minimum(n + block_n, time) - 1)
    full = tl.maximum(full // block_m * block_m, below)
    starts_ptr += batch * time
    for i in range(group):
        head = kv_head * group + i
        q = q_ptr + batch * q_batch + 2 * head * q_head
        do = do_ptr + (batch * time * heads + head) * 2 * D
        lse = lse_ptr + (batch * heads + head) * 2 * time
        delta = delta_ptr + (batch * heads + head) * 2 * time
        dk1, dk2, dv = _to_keys(
            dk1, dk2, dv, k1, k2, v, q, do, lse, delta, starts_ptr, key, lambda_, first, tl.minimum(below, end), time,
            q_row, q_head, heads * 2 * D, scale * LOG2_E, D, block_d, block_m, packed, True,
        )  # fmt: skip
        dk1, dk2, dv = _to_keys(
            dk1, dk2, dv, k1, k2, v, q, do, lse, delta, starts_ptr, key, lambda_, below, full, time,
            q_row, q_head, heads * 2 * D, scale * LOG2_E, D, block_d, block_m, packed, False,
        )  # fmt: skip
        dk1, dk2, dv = _to_keys(
            dk1, dk2, dv, k1, k2, v, q, do, lse, delta, starts_ptr, key, lambda_, full, end, time,
            q_row, q_head, heads * 2 * D, scale * LOG2_E, D, block_d, block_m, packed, True,
        )  # fmt: skip
    dk_ptr += (batch * time * kv_heads + kv_head) * 2 * D
    store_tile(dk_ptr, key, kv_heads * 2 * D, time, dk1 * scale, D, block_d)
    store_tile(dk_ptr + D, key, kv_heads * 2 * D, time, dk2 * (-lambda_ * scale), D, block_d)
    store_tile(
        dv_ptr + (batch * time * kv_heads + kv_head) * 2 * D, key, kv_heads * 2 * D, time, dv, 2 * D, 2 * block_d
    )


@triton.jit
def _to_queries(
    dq1, dq2, q1, q2, do, lse1, lse2, delta1, delta2, k_ptr, v_ptr, row, start, first, end, time, k_row, k_head, v_row,
    scale, D: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    for n in range(first, end, block_n):
        key = n + tl.arange(0, block_n)
        k1 = load_tile(k_ptr, key, k_row, time, D, block_d, masked)
        k2 = load_tile(k_ptr + k_head, key, k_row, time, D, block_d, masked)
        v = load_tile(v_ptr, key, v_row, time, 2 * D, 2 * block_d, masked)
        s1 = dot(q1, tl.trans(k1), tl.zeros((q1.shape[0], block_n), tl.float32)) * scale
        s2 = dot(q2, tl.trans(k2), tl.zeros((q1.shape[0], block_n), tl.float32)) * scale
        s1 = masked_score(s1, row[:, None], key[None, :], start[:, None], masked)
        s2 = masked_score(s2, row[:, None], key[None, :], start[:, None], masked)
        p1, p2 = tl.exp2(s1 - lse1[:, None]), tl.exp2(s2 - lse2[:, None])
        dp = dot(do, tl.trans(v), tl.zeros((q1.shape[0], block_n), tl.float32))
        dq1 = dot((p1 * (dp - delta1[:, None])).to(k1.dtype), k1, dq1)
        dq2 = dot((p2 * (dp - delta2[:, None])).to(k2.dtype), k2, dq2)
    return dq1, dq2


@triton.jit
def query_gradients(
    q_ptr, k_ptr, v_ptr, lambda_ptr, starts_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, time, heads,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, scale,
    group: tl.constexpr, D: tl.constexpr, block_d: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
    packed: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    m = (tl.num_programs(1) - 1 - tl.program_id(1)) * block_m
    row = m + tl.arange(0, block_m)
    inside = row < time
    start = tl.zeros((block_m,), tl.int32)
    if packed:
        start = tl.load(starts_ptr + batch * time + row, mask=inside, other=0)
    q_ptr += batch * q_batch + 2 * head * q_head
    k_ptr += batch * k_batch + 2 * (head // group) * k_head
    v_ptr += batch * v_batch + (head // group) * v_head
    at = (batch * time * heads + head) * 2 * D
    q1 = load_tile(q_ptr, row, q_row, time, D, block_d, True)
    q2 = load_tile(q_ptr + q_head, row, q_row, time, D, block_d, True)
    do = load_tile(do_ptr + at, row, heads * 2 * D, time, 2 * D, 2 * block_d, True)
    numbers = (batch * heads + head) * 2 * time + row
    lse1 = tl.load(lse_ptr + numbers, mask=inside, other=float("inf"))
    lse2 = tl.load(lse_ptr + numbers + time, mask=inside, other=float("inf"))
    delta1 = tl.load(delta_ptr + numbers, mask=inside, other=0.0)
    delta2 = tl.load(delta_ptr + numbers + time, mask=inside, other=0.0)
    dq1 = tl.zeros((block_m, block_d), tl.float32)
    dq2 = tl.zeros((block_m, block_d), tl.float32)
    log_scale = scale * LOG2_E
    first, full, diagonal, end = key_span(start, row, m, time, block_m, block_n, packed)
    if packed:
        dq1, dq2 = _to_queries(
            dq1, dq2, q1, q2, do, lse1, lse2, delta1, delta2, k_ptr, v_ptr, row, start, first, full, time,
            k_row, k_head, v_row, log_scale, D, block_d, block_n, True,
        )  # fmt: skip
    dq1, dq2 = _to_queries(
        dq1, dq2, q1, q2, do, lse1, lse2, delta1, delta2, k_ptr, v_ptr, row, start, full, diagonal, time,
        k_row, k_head, v_row, log_scale, D, block_d, block_n, False,
    )  # fmt: skip
    dq1, dq2 = _to_queries(
        dq1, dq2, q1, q2, do, lse1, lse2, delta1, delta2, k_ptr, v_ptr, row, start, tl.maximum(diagonal, first), end,
        time, k_row, k_head, v_row, log_scale, D, block_d, block_n, True,
    )  # fmt: skip
    store_tile(dq_ptr + at, row, heads * 2 * D, time, dq1 * scale, D, block_d)
    store_tile(dq_ptr + at + D, row, heads * 2 * D, time, dq2 * (-tl.load(lambda_ptr) * scale), D, block_d)
