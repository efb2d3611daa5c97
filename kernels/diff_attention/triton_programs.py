"""The programs of `triton`; formulas in `reference`.

1. `forward`: a program owns some queries of one head and runs twice over the keys they see, for the second map and then
   for the first: two loops of plain attention, whose tiles fill tensor cores and registers, where one loop with both
   maps' sums must have tiles half as large. V comes from the cache the second time. O2 waits in memory, rounded as
   PyTorch's would be; subtraction, norm and scale are done before the last store.
2. `prepare`: the derivative of norm and scale, the program's parts of dw and dlambda, and the numbers of a query that
   the gradients need: -lse sqrt(d) of both maps (in the unit of scores before they are scaled), -d1 and d1 - d2.
   Products start from them.
3. `key_gradients`: a program owns some keys of one key head and runs over the queries that see them, of all heads of
   the group. Scores are transposed (keys are rows), so that no product needs a transposed map.
4. `query_gradients`: a program owns some queries of one head and runs over keys.

3 and 4 both compute scores and dP: 28 d FLOPs instead of 20 d (32 d at d = 128, where dK and dV are two launches of 3),
but no atomic additions, so equal inputs give equal bits, and dQ needs no memory in float32.

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
    dot_onto,
    key_span,
    line_of,
    load_tile,
    masked_score,
    online_softmax,
    query_span,
    query_tile,
    store_tile,
)


@triton.jit
def _scores(q, k, row, key, start, masked: tl.constexpr):
    s = dot(q, tl.trans(k), tl.zeros((q.shape[0], k.shape[0]), tl.float32))
    return masked_score(s, row[:, None], key[None, :], start[:, None], masked)


@triton.jit
def _read(
    y, peak, total, q, k_ptr, v_ptr, row, start, first, end, time, k_row, v_row, scale,
    D: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    for n in range(first, end, block_n):
        key = n + tl.arange(0, block_n)
        k = load_tile(k_ptr, key, k_row, time, D, block_d, masked)
        v = load_tile(v_ptr, key, v_row, time, 2 * D, 2 * block_d, masked)
        s = _scores(q, k, row, key, start, masked)
        w, shrink, peak, total = online_softmax(s, peak, total, scale)
        y = dot(w.to(v.dtype), v, y * shrink[:, None])
    return y, peak, total


@triton.jit
def _attend(
    q_ptr, k_ptr, v_ptr, m, row, start, time, q_row, k_row, v_row, scale,
    D: tl.constexpr, block_d: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, packed: tl.constexpr,
):  # fmt: skip
    # What one map reads, and the logarithm of its sum.
    q = load_tile(q_ptr, row, q_row, time, D, block_d, True)
    y = tl.zeros((block_m, 2 * block_d), tl.float32)
    peak, total = tl.full((block_m,), LOWEST, tl.float32), tl.zeros((block_m,), tl.float32)
    first, full, diagonal, end = key_span(start, row, m, time, block_m, block_n, packed)
    if packed:
        y, peak, total = _read(
            y, peak, total, q, k_ptr, v_ptr, row, start, first, full, time, k_row, v_row, scale,
            D, block_d, block_n, True,
        )  # fmt: skip
    y, peak, total = _read(
        y, peak, total, q, k_ptr, v_ptr, row, start, full, diagonal, time, k_row, v_row, scale,
        D, block_d, block_n, False,
    )  # fmt: skip
    y, peak, total = _read(
        y, peak, total, q, k_ptr, v_ptr, row, start, tl.maximum(diagonal, first), end, time, k_row, v_row, scale,
        D, block_d, block_n, True,
    )  # fmt: skip
    total = tl.where(row < time, total, 1.0)
    return y / total[:, None], peak + tl.log2(total)


@triton.jit(do_not_specialize=["time"])
def forward(
    q_ptr, k_ptr, v_ptr, lambda_ptr, weight_ptr, starts_ptr, y_ptr, o_ptr, o2_ptr, lse_ptr, time, heads,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, scale, output_scale, eps,
    group: tl.constexpr, D: tl.constexpr, block_d: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
    packed: tl.constexpr, keep: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    m = (tl.num_programs(1) - 1 - tl.program_id(1)) * block_m  # the longest first
    row, column = m + tl.arange(0, block_m), tl.arange(0, 2 * block_d)
    start = tl.zeros((block_m,), tl.int32)
    if packed:
        start = tl.load(starts_ptr + batch * time + row, mask=row < time, other=0)
    q_ptr += batch * q_batch + 2 * head * q_head
    k_ptr += batch * k_batch + 2 * (head // group) * k_head
    v_ptr += batch * v_batch + (head // group) * v_head
    at, line = (batch * time * heads + head) * 2 * D, heads * 2 * D
    o2, lse2 = _attend(
        q_ptr + q_head, k_ptr + k_head, v_ptr, m, row, start, time, q_row, k_row, v_row, scale * LOG2_E,
        D, block_d, block_m, block_n, packed,
    )  # fmt: skip
    store_tile(o2_ptr + at, row, line, time, o2, 2 * D, 2 * block_d)
    o, lse1 = _attend(
        q_ptr, k_ptr, v_ptr, m, row, start, time, q_row, k_row, v_row, scale * LOG2_E,
        D, block_d, block_m, block_n, packed,
    )  # fmt: skip
    tl.debug_barrier()  # other threads of this program may have written what is read now
    o2 = load_tile(o2_ptr + at, row, line, time, 2 * D, 2 * block_d, True).to(tl.float32)
    o = o - tl.load(lambda_ptr) * o2
    weight = tl.load(weight_ptr + column, mask=column < 2 * D, other=0.0).to(tl.float32) * output_scale
    norm = tl.rsqrt(tl.sum(o * o, 1) / (2 * D) + eps)
    if not keep:
        tl.debug_barrier()  # O2 lay where y goes
    store_tile(y_ptr + at, row, line, time, o * norm[:, None] * weight[None, :], 2 * D, 2 * block_d)
    if keep:
        store_tile(o_ptr + at, row, line, time, o, 2 * D, 2 * block_d)
        lse_ptr += (batch * heads + head) * 2 * time + row
        tl.store(lse_ptr, lse1, mask=row < time)
        tl.store(lse_ptr + time, lse2, mask=row < time)


@triton.jit(do_not_specialize=["time"])
def prepare(
    dy_ptr, o_ptr, o2_ptr, lambda_ptr, weight_ptr, lse_ptr, do_ptr, numbers_ptr, dweight_ptr, dlambda_ptr, time, heads,
    output_scale, eps, scale, D: tl.constexpr, block_d: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    row, column = tl.program_id(1) * tile + tl.arange(0, tile), tl.arange(0, 2 * block_d)
    at, stride = (batch * time * heads + head) * 2 * D, heads * 2 * D
    dy = load_tile(dy_ptr + at, row, stride, time, 2 * D, 2 * block_d, True).to(tl.float32) * output_scale
    o = load_tile(o_ptr + at, row, stride, time, 2 * D, 2 * block_d, True).to(tl.float32)
    o2 = load_tile(o2_ptr + at, row, stride, time, 2 * D, 2 * block_d, True).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column < 2 * D, other=0.0).to(tl.float32)
    norm = tl.rsqrt(tl.sum(o * o, 1) / (2 * D) + eps)[:, None]
    n, g = o * norm, dy * weight[None, :]
    do = norm * (g - n * (tl.sum(g * n, 1) / (2 * D))[:, None])
    do = do.to(do_ptr.dtype.element_ty)
    store_tile(do_ptr + at, row, stride, time, do, 2 * D, 2 * block_d)
    do = do.to(tl.float32)  # as rounded: dP is made of it too, and what they share cancels
    second = tl.sum(do * o2, 1)
    first = tl.sum(do * o, 1) + tl.load(lambda_ptr) * second
    inside = row < time
    lse_ptr += (batch * heads + head) * 2 * time + row
    line = line_of(time)
    numbers_ptr += (batch * heads + head) * 4 * line + row
    lse1 = tl.load(lse_ptr, mask=inside, other=float("inf"))  # behind the last query: weights of zero
    lse2 = tl.load(lse_ptr + time, mask=inside, other=float("inf"))
    tl.store(numbers_ptr, lse1 / (-scale * LOG2_E), mask=row < line)
    tl.store(numbers_ptr + line, lse2 / (-scale * LOG2_E), mask=row < line)
    tl.store(numbers_ptr + 2 * line, -first, mask=row < line)
    tl.store(numbers_ptr + 3 * line, first - second, mask=row < line)
    part = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(dweight_ptr + part * 2 * D + column, tl.sum(dy * n, 0), mask=column < 2 * D)
    tl.store(dlambda_ptr + part, -tl.sum(second, 0))


@triton.jit
def _to_keys(
    dk1, dk2, dv, k1, k2, v, q_ptr, do_ptr, numbers_ptr, starts_ptr, key, lambda_, first, near, second, tiles, time,
    heads, q_row, q_head, scale, group: tl.constexpr, D: tl.constexpr, block_d: tl.constexpr, block_m: tl.constexpr,
    packed: tl.constexpr, keys: tl.constexpr, values: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    line = line_of(time)
    for step in range(0, group * tiles):
        i, m = query_tile(step, first, near, second, tiles, group, block_m)
        row = m + tl.arange(0, block_m)
        q1 = load_tile(q_ptr + 2 * i * q_head, row, q_row, time, D, block_d, masked)
        q2 = load_tile(q_ptr + (2 * i + 1) * q_head, row, q_row, time, D, block_d, masked)
        do = load_tile(do_ptr + i * 2 * D, row, heads * 2 * D, time, 2 * D, 2 * block_d, masked)
        inside, numbers = row < line, numbers_ptr + 4 * i * line + row
        base1 = tl.load(numbers, mask=inside, other=float("-inf"))
        base2 = tl.load(numbers + line, mask=inside, other=float("-inf"))
        start = tl.zeros((block_m,), tl.int32)
        if packed and masked:
            start = tl.load(starts_ptr + row, mask=row < time, other=0)
        s1, s2 = dot_onto(k1, tl.trans(q1), base1), dot_onto(k2, tl.trans(q2), base2)
        s1 = masked_score(s1, row[None, :], key[:, None], start[None, :], masked)
        s2 = masked_score(s2, row[None, :], key[:, None], start[None, :], masked)
        p1, p2 = tl.exp2(s1 * scale), tl.exp2(s2 * scale)
        if values:
            dv = dot((p1 - lambda_ * p2).to(do.dtype), do, dv)
        if keys:
            minus_d1 = tl.load(numbers + 2 * line, mask=inside, other=0.0)
            d1_minus_d2 = tl.load(numbers + 3 * line, mask=inside, other=0.0)
            dp = dot_onto(v, tl.trans(do), minus_d1)
            dk1 = dot((p1 * dp).to(q1.dtype), q1, dk1)
            dk2 = dot((p2 * (dp + d1_minus_d2[None, :])).to(q2.dtype), q2, dk2)
    return dk1, dk2, dv


@triton.jit(do_not_specialize=["time"])
def key_gradients(
    q_ptr, k_ptr, v_ptr, lambda_ptr, starts_ptr, ends_ptr, do_ptr, numbers_ptr, dk_ptr, dv_ptr, time, heads,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, scale,
    group: tl.constexpr, D: tl.constexpr, block_d: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
    packed: tl.constexpr, keys: tl.constexpr, values: tl.constexpr,
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
    first, below, full, near, whole, far = query_span(ends_ptr + batch * time, n, time, block_m, block_n, packed)
    head = kv_head * group
    q = q_ptr + batch * q_batch + 2 * head * q_head
    do = do_ptr + (batch * time * heads + head) * 2 * D
    numbers = numbers_ptr + (batch * heads + head) * 4 * line_of(time)
    starts_ptr += batch * time
    dk1, dk2, dv = _to_keys(
        dk1, dk2, dv, k1, k2, v, q, do, numbers, starts_ptr, key, lambda_, first, near, full, near + far, time, heads,
        q_row, q_head, scale * LOG2_E, group, D, block_d, block_m, packed, keys, values, True,
    )  # fmt: skip
    dk1, dk2, dv = _to_keys(
        dk1, dk2, dv, k1, k2, v, q, do, numbers, starts_ptr, key, lambda_, below, whole, below, whole, time, heads,
        q_row, q_head, scale * LOG2_E, group, D, block_d, block_m, packed, keys, values, False,
    )  # fmt: skip
    at = (batch * time * kv_heads + kv_head) * 2 * D
    if keys:
        store_tile(dk_ptr + at, key, kv_heads * 2 * D, time, dk1 * scale, D, block_d)
        store_tile(dk_ptr + at + D, key, kv_heads * 2 * D, time, dk2 * (-lambda_ * scale), D, block_d)
    if values:
        store_tile(dv_ptr + at, key, kv_heads * 2 * D, time, dv, 2 * D, 2 * block_d)


@triton.jit
def _to_queries(
    dq1, dq2, q1, q2, do, base1, base2, d1, d2, k_ptr, v_ptr, row, start, first, end, time, k_row, k_head, v_row,
    scale, D: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    for n in range(first, end, block_n):
        key = n + tl.arange(0, block_n)
        k1 = load_tile(k_ptr, key, k_row, time, D, block_d, masked)
        k2 = load_tile(k_ptr + k_head, key, k_row, time, D, block_d, masked)
        v = load_tile(v_ptr, key, v_row, time, 2 * D, 2 * block_d, masked)
        # One map after the other: registers hold one's scores.
        dp = dot(do, tl.trans(v), tl.zeros((q1.shape[0], block_n), tl.float32))
        p1 = tl.exp2(_scores(q1, k1, row, key, start, masked) * scale + base1[:, None])
        dq1 = dot((p1 * (dp - d1[:, None])).to(k1.dtype), k1, dq1)
        p2 = tl.exp2(_scores(q2, k2, row, key, start, masked) * scale + base2[:, None])
        dq2 = dot((p2 * (dp - d2[:, None])).to(k2.dtype), k2, dq2)
    return dq1, dq2


@triton.jit(do_not_specialize=["time"])
def query_gradients(
    q_ptr, k_ptr, v_ptr, lambda_ptr, starts_ptr, do_ptr, numbers_ptr, dq_ptr, time, heads,
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
    log_scale = scale * LOG2_E
    line = line_of(time)
    numbers = numbers_ptr + (batch * heads + head) * 4 * line + row
    base1 = tl.load(numbers, mask=inside, other=float("-inf")) * log_scale
    base2 = tl.load(numbers + line, mask=inside, other=float("-inf")) * log_scale
    d1 = -tl.load(numbers + 2 * line, mask=inside, other=0.0)
    d2 = d1 - tl.load(numbers + 3 * line, mask=inside, other=0.0)
    dq1 = tl.zeros((block_m, block_d), tl.float32)
    dq2 = tl.zeros((block_m, block_d), tl.float32)
    first, full, diagonal, end = key_span(start, row, m, time, block_m, block_n, packed)
    if packed:
        dq1, dq2 = _to_queries(
            dq1, dq2, q1, q2, do, base1, base2, d1, d2, k_ptr, v_ptr, row, start, first, full, time,
            k_row, k_head, v_row, log_scale, D, block_d, block_n, True,
        )  # fmt: skip
    dq1, dq2 = _to_queries(
        dq1, dq2, q1, q2, do, base1, base2, d1, d2, k_ptr, v_ptr, row, start, full, diagonal, time,
        k_row, k_head, v_row, log_scale, D, block_d, block_n, False,
    )  # fmt: skip
    dq1, dq2 = _to_queries(
        dq1, dq2, q1, q2, do, base1, base2, d1, d2, k_ptr, v_ptr, row, start, tl.maximum(diagonal, first), end,
        time, k_row, k_head, v_row, log_scale, D, block_d, block_n, True,
    )  # fmt: skip
    store_tile(dq_ptr + at, row, heads * 2 * D, time, dq1 * scale, D, block_d)
    store_tile(dq_ptr + at + D, row, heads * 2 * D, time, dq2 * (-tl.load(lambda_ptr) * scale), D, block_d)
