"""The programs of `triton`; formulas in `reference`.

1. `forward`: a program owns some queries of one head, both maps' below each other in one tile, as both read the same
   keys and values: the loop is that of plain attention. What is gated is subtracted before the one store.
2. `prepare`: dg, and the numbers of a query that the gradients need: -lse sqrt(d) of both maps (in the unit of scores
   before they are scaled), -d1 and e2 - d1. Products start from them.
3. `key_gradients`: a program owns some keys of one key head and runs over the queries that see them, of all heads of
   the group. Scores are transposed (keys are rows), so that no product needs a transposed map.
4. `query_gradients`: a program owns some queries of one head and runs over keys.

3 can do 4's work too (`queries`): programs then add to dQ in float32, in no fixed order, and scores and dP are made
once: 16 d FLOPs for 22 d. Otherwise there are no atomic additions, and equal inputs give equal bits. A mask is applied
where the diagonal, the edge of a document or the end of a row is; never between them.
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
    dot_onto,
    key_span,
    line_of,
    load_lines,
    load_tile,
    masked_score,
    online_softmax,
    query_span,
    query_tile,
    side_by_side,
    store_tile,
    taken_apart,
)


@triton.jit
def _scores(q, k, row, key, start, masked: tl.constexpr):
    s = dot(q, tl.trans(k), tl.zeros((q.shape[0], k.shape[0]), tl.float32))
    return masked_score(s, row[:, None], key[None, :], start[:, None], masked)


@triton.jit
def _read(
    y, peak, total, q, k_ptr, v_ptr, query, start, first, end, time, k_row, v_row, scale,
    D: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    for n in range(first, end, block_n):
        key = n + tl.arange(0, block_n)
        k = load_tile(k_ptr, key, k_row, time, D, block_d, masked)
        v = load_tile(v_ptr, key, v_row, time, D, block_d, masked)
        s = _scores(q, k, query, key, start, masked)
        w, shrink, peak, total = online_softmax(s, peak, total, scale)
        y = dot(w.to(v.dtype), v, y * shrink[:, None])
    return y, peak, total


@triton.jit(do_not_specialize=["time"])
def forward(
    q_ptr, k_ptr, v_ptr, gate_ptr, starts_ptr, y_ptr, o2_ptr, lse_ptr, time, heads,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, scale,
    group: tl.constexpr, D: tl.constexpr, block_d: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
    packed: tl.constexpr, keep: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    m = (tl.num_programs(1) - 1 - tl.program_id(1)) * block_m  # the longest first
    which, query = tl.arange(0, 2 * block_m) // block_m, m + tl.arange(0, 2 * block_m) % block_m
    inside = query < time
    start = tl.zeros((2 * block_m,), tl.int32)
    if packed:
        start = tl.load(starts_ptr + batch * time + query, mask=inside, other=0)
    q_ptr += batch * q_batch + 2 * head * q_head
    k_ptr += batch * k_batch + (head // group) * k_head
    v_ptr += batch * v_batch + (head // group) * v_head
    q = load_lines(q_ptr + query * q_row + which * q_head, query, time, D, block_d, True)
    y = tl.zeros((2 * block_m, block_d), tl.float32)
    peak, total = tl.full((2 * block_m,), LOWEST, tl.float32), tl.zeros((2 * block_m,), tl.float32)
    scale = scale * LOG2_E
    first, full, diagonal, end = key_span(start, query, m, time, block_m, block_n, packed)
    if packed:
        y, peak, total = _read(
            y, peak, total, q, k_ptr, v_ptr, query, start, first, full, time, k_row, v_row, scale,
            D, block_d, block_n, True,
        )  # fmt: skip
    y, peak, total = _read(
        y, peak, total, q, k_ptr, v_ptr, query, start, full, diagonal, time, k_row, v_row, scale,
        D, block_d, block_n, False,
    )  # fmt: skip
    y, peak, total = _read(
        y, peak, total, q, k_ptr, v_ptr, query, start, tl.maximum(diagonal, first), end, time, k_row, v_row, scale,
        D, block_d, block_n, True,
    )  # fmt: skip
    total = tl.where(inside, total, 1.0)
    y = y / total[:, None]
    gate = tl.load(gate_ptr + (batch * time + query) * heads + head, mask=inside, other=0.0).to(tl.float32)
    at = (batch * time * heads + head) * D
    if keep:
        line = tl.where(which == 1, query, time)  # the second map's alone
        store_tile(o2_ptr + at, line, heads * D, time, y, D, block_d)
        lse_at = lse_ptr + ((batch * heads + head) * 2 + which) * time + query
        tl.store(lse_at, peak + tl.log2(total), mask=inside)
    y = y * tl.where(which == 1, -gate, 1.0)[:, None]
    difference = tl.sum(tl.reshape(y, (2, block_m, block_d)), 0)
    store_tile(y_ptr + at, m + tl.arange(0, block_m), heads * D, time, difference, D, block_d)


@triton.jit(do_not_specialize=["time"])
def prepare(
    dy_ptr, y_ptr, o2_ptr, gate_ptr, lse_ptr, numbers_ptr, dgate_ptr, time, heads, scale,
    D: tl.constexpr, block_d: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    row = tl.program_id(1) * tile + tl.arange(0, tile)
    at, inside = (batch * time * heads + head) * D, row < time
    dy = load_tile(dy_ptr + at, row, heads * D, time, D, block_d, True).to(tl.float32)
    y = load_tile(y_ptr + at, row, heads * D, time, D, block_d, True).to(tl.float32)
    o2 = load_tile(o2_ptr + at, row, heads * D, time, D, block_d, True).to(tl.float32)
    here = (batch * time + row) * heads + head
    gate = tl.load(gate_ptr + here, mask=inside, other=0.0).to(tl.float32)
    second = tl.sum(dy * o2, 1)
    first = tl.sum(dy * y, 1) + gate * second
    tl.store(dgate_ptr + here, -second, mask=inside)
    lse_ptr += (batch * heads + head) * 2 * time + row
    line = line_of(time)
    numbers_ptr += (batch * heads + head) * 4 * line + row
    lse1 = tl.load(lse_ptr, mask=inside, other=float("inf"))  # behind the last query: weights of zero
    lse2 = tl.load(lse_ptr + time, mask=inside, other=float("inf"))
    tl.store(numbers_ptr, lse1 / (-scale * LOG2_E), mask=row < line)
    tl.store(numbers_ptr + line, lse2 / (-scale * LOG2_E), mask=row < line)
    tl.store(numbers_ptr + 2 * line, -first, mask=row < line)
    tl.store(numbers_ptr + 3 * line, second - first, mask=row < line)


@triton.jit
def _to_keys(
    dk, dv, k, v, q_ptr, dy_ptr, gate_ptr, numbers_ptr, starts_ptr, dq_ptr, key, first, near, second, tiles, time,
    heads, q_row, q_head, scale, group: tl.constexpr, D: tl.constexpr, block_d: tl.constexpr, block_m: tl.constexpr,
    packed: tl.constexpr, queries: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    which = tl.arange(0, 2 * block_m) // block_m
    line = line_of(time)
    for step in range(0, group * tiles):
        i, m = query_tile(step, first, near, second, tiles, group, block_m)
        row, query = m + tl.arange(0, block_m), m + tl.arange(0, 2 * block_m) % block_m
        q = load_lines(q_ptr + query * q_row + (2 * i + which) * q_head, query, time, D, block_d, masked)
        dy = load_tile(dy_ptr + i * D, row, heads * D, time, D, block_d, masked)
        numbers = numbers_ptr + 4 * i * line
        base = tl.load(numbers + which * line + query, mask=query < line, other=float("-inf"))
        inside = row < line
        minus_d1 = tl.load(numbers + 2 * line + row, mask=inside, other=0.0)
        e2_minus_d1 = tl.load(numbers + 3 * line + row, mask=inside, other=0.0)
        gate = tl.load(gate_ptr + row * heads + i, mask=row < time, other=0.0).to(tl.float32)
        start = tl.zeros((2 * block_m,), tl.int32)
        if packed and masked:
            start = tl.load(starts_ptr + query, mask=query < time, other=0)
        s = masked_score(dot_onto(k, tl.trans(q), base), query[None, :], key[:, None], start[None, :], masked)
        p1, p2 = taken_apart(tl.exp2(s * scale))
        p2 = p2 * gate[None, :]
        dp = dot_onto(v, tl.trans(dy), minus_d1)
        dv = dot((p1 - p2).to(dy.dtype), dy, dv)
        ds = side_by_side((p1 * dp).to(q.dtype), (p2 * (e2_minus_d1[None, :] - dp)).to(q.dtype))
        dk = dot(ds, q, dk)
        if queries:
            dq = dot(tl.trans(ds), k, tl.zeros((2 * block_m, block_d), tl.float32)) * (scale / LOG2_E)
            column = tl.arange(0, block_d)
            at = dq_ptr + ((query * 2 * heads + 2 * i + which) * D)[:, None] + column[None, :]
            tl.atomic_add(at, dq, mask=(query < time)[:, None] & (column < D)[None, :], sem="relaxed")
    return dk, dv


@triton.jit(do_not_specialize=["time"])
def key_gradients(
    q_ptr, k_ptr, v_ptr, gate_ptr, starts_ptr, ends_ptr, dy_ptr, numbers_ptr, dk_ptr, dv_ptr, dq_ptr, time, heads,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, scale,
    group: tl.constexpr, D: tl.constexpr, block_d: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
    packed: tl.constexpr, queries: tl.constexpr,
):  # fmt: skip
    kv_heads = heads // group
    batch, kv_head = (tl.program_id(0) // kv_heads).to(tl.int64), tl.program_id(0) % kv_heads
    n = tl.program_id(1) * block_n  # the longest first
    key = n + tl.arange(0, block_n)
    k = load_tile(k_ptr + batch * k_batch + kv_head * k_head, key, k_row, time, D, block_d, True)
    v = load_tile(v_ptr + batch * v_batch + kv_head * v_head, key, v_row, time, D, block_d, True)
    dk = tl.zeros((block_n, block_d), tl.float32)
    dv = tl.zeros((block_n, block_d), tl.float32)
    first, below, full, near, whole, far = query_span(ends_ptr + batch * time, n, time, block_m, block_n, packed)
    head = kv_head * group
    q = q_ptr + batch * q_batch + 2 * head * q_head
    dy = dy_ptr + (batch * time * heads + head) * D
    gate = gate_ptr + batch * time * heads + head
    numbers = numbers_ptr + (batch * heads + head) * 4 * line_of(time)
    starts_ptr += batch * time
    dq_ptr += (batch * time * heads + head) * 2 * D
    dk, dv = _to_keys(
        dk, dv, k, v, q, dy, gate, numbers, starts_ptr, dq_ptr, key, first, near, full, near + far, time, heads,
        q_row, q_head, scale * LOG2_E, group, D, block_d, block_m, packed, queries, True,
    )  # fmt: skip
    dk, dv = _to_keys(
        dk, dv, k, v, q, dy, gate, numbers, starts_ptr, dq_ptr, key, below, whole, below, whole, time, heads,
        q_row, q_head, scale * LOG2_E, group, D, block_d, block_m, packed, queries, False,
    )  # fmt: skip
    at = (batch * time * kv_heads + kv_head) * D
    store_tile(dk_ptr + at, key, kv_heads * D, time, dk * scale, D, block_d)
    store_tile(dv_ptr + at, key, kv_heads * D, time, dv, D, block_d)


@triton.jit
def _to_queries(
    dq1, dq2, q1, q2, dy, base1, base2, d1, e2, k_ptr, v_ptr, row, start, first, end, time, k_row, v_row, scale,
    D: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    for n in range(first, end, block_n):
        key = n + tl.arange(0, block_n)
        k = load_tile(k_ptr, key, k_row, time, D, block_d, masked)
        v = load_tile(v_ptr, key, v_row, time, D, block_d, masked)
        # One map after the other: registers hold one's scores.
        dp = dot(dy, tl.trans(v), tl.zeros((q1.shape[0], block_n), tl.float32))
        p1 = tl.exp2(_scores(q1, k, row, key, start, masked) * scale + base1[:, None])
        dq1 = dot((p1 * (dp - d1[:, None])).to(k.dtype), k, dq1)
        p2 = tl.exp2(_scores(q2, k, row, key, start, masked) * scale + base2[:, None])
        dq2 = dot((p2 * (e2[:, None] - dp)).to(k.dtype), k, dq2)
    return dq1, dq2


@triton.jit(do_not_specialize=["time"])
def query_gradients(
    q_ptr, k_ptr, v_ptr, gate_ptr, starts_ptr, dy_ptr, numbers_ptr, dq_ptr, time, heads,
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
    k_ptr += batch * k_batch + (head // group) * k_head
    v_ptr += batch * v_batch + (head // group) * v_head
    q1 = load_tile(q_ptr, row, q_row, time, D, block_d, True)
    q2 = load_tile(q_ptr + q_head, row, q_row, time, D, block_d, True)
    dy = load_tile(dy_ptr + (batch * time * heads + head) * D, row, heads * D, time, D, block_d, True)
    log_scale = scale * LOG2_E
    line = line_of(time)
    numbers = numbers_ptr + (batch * heads + head) * 4 * line + row
    base1 = tl.load(numbers, mask=inside, other=float("-inf")) * log_scale
    base2 = tl.load(numbers + line, mask=inside, other=float("-inf")) * log_scale
    d1 = -tl.load(numbers + 2 * line, mask=inside, other=0.0)
    e2 = tl.load(numbers + 3 * line, mask=inside, other=0.0) + d1
    dq1 = tl.zeros((block_m, block_d), tl.float32)
    dq2 = tl.zeros((block_m, block_d), tl.float32)
    first, full, diagonal, end = key_span(start, row, m, time, block_m, block_n, packed)
    if packed:
        dq1, dq2 = _to_queries(
            dq1, dq2, q1, q2, dy, base1, base2, d1, e2, k_ptr, v_ptr, row, start, first, full, time, k_row, v_row,
            log_scale, D, block_d, block_n, True,
        )  # fmt: skip
    dq1, dq2 = _to_queries(
        dq1, dq2, q1, q2, dy, base1, base2, d1, e2, k_ptr, v_ptr, row, start, full, diagonal, time, k_row, v_row,
        log_scale, D, block_d, block_n, False,
    )  # fmt: skip
    dq1, dq2 = _to_queries(
        dq1, dq2, q1, q2, dy, base1, base2, d1, e2, k_ptr, v_ptr, row, start, tl.maximum(diagonal, first), end,
        time, k_row, v_row, log_scale, D, block_d, block_n, True,
    )  # fmt: skip
    gate = tl.load(gate_ptr + (batch * time + row) * heads + head, mask=inside, other=0.0).to(tl.float32)
    at = dq_ptr + (batch * time * heads + head) * 2 * D
    store_tile(at, row, heads * 2 * D, time, dq1 * scale, D, block_d)
    store_tile(at + D, row, heads * 2 * D, time, dq2 * (gate * scale)[:, None], D, block_d)
