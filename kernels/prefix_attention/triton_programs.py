"""The programs of `triton`; formulas in `reference`.

1. `forward`: a program owns some queries of one head. An online softmax runs over the prefix, then over the keys of the
   call that they see: no list of keys is made, and no mask is read.
2. `prepare`: the numbers of a query that the gradients need: -lse sqrt(d) (in the unit of scores before they are
   scaled) and -D. Products start from them.
3. `key_gradients`: a program owns some keys of one key head and runs over the queries that see them, of all heads of
   the group. Scores are transposed (keys are rows), so that no product needs a transposed map.
4. `prefix_gradients`: the same for keys of the prefix. All queries of all rows see them, so the queries are parted
   among programs, whose parts are added in a fixed order.
5. `query_gradients`: a program owns some queries of one head and runs over the prefix and their keys.

No atomic additions: equal inputs give equal bits. A mask is applied where the diagonal, the edge of a window or
document or the end of a row is; never between them.
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
def _seen(score, query, key, start, keys, masked: tl.constexpr, causal: tl.constexpr):
    # Scores of what is seen; of the prefix all that there is.
    if causal:
        score = masked_score(score, query, key, start, masked)
    elif masked:
        score = tl.where(key < keys, score, float("-inf"))
    return score


@triton.jit
def _read(
    y, peak, total, q, k_ptr, v_ptr, row, start, first, end, keys, k_row, v_row, scale,
    D: tl.constexpr, block_d: tl.constexpr, V: tl.constexpr, block_v: tl.constexpr, block_n: tl.constexpr,
    masked: tl.constexpr, causal: tl.constexpr,
):  # fmt: skip
    for n in range(first, end, block_n):
        key = n + tl.arange(0, block_n)
        k = load_tile(k_ptr, key, k_row, keys, D, block_d, masked)
        v = load_tile(v_ptr, key, v_row, keys, V, block_v, masked)
        s = dot(q, tl.trans(k), tl.zeros((q.shape[0], block_n), tl.float32))
        s = _seen(s, row[:, None], key[None, :], start[:, None], keys, masked, causal)
        w, shrink, peak, total = online_softmax(s, peak, total, scale)
        y = dot(w.to(v.dtype), v, y * shrink[:, None])
    return y, peak, total


@triton.jit(do_not_specialize=["time"])
def forward(
    q_ptr, k_ptr, v_ptr, pk_ptr, pv_ptr, starts_ptr, y_ptr, lse_ptr, time, heads, prefix,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, scale,
    group: tl.constexpr, D: tl.constexpr, block_d: tl.constexpr, V: tl.constexpr, block_v: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, packed: tl.constexpr, keep: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    m = (tl.num_programs(1) - 1 - tl.program_id(1)) * block_m  # the longest first
    row = m + tl.arange(0, block_m)
    start = tl.zeros((block_m,), tl.int32)
    if packed:
        start = tl.load(starts_ptr + batch * time + row, mask=row < time, other=0)
    kv_head = head // group
    q = load_tile(q_ptr + batch * q_batch + head * q_head, row, q_row, time, D, block_d, True)
    pk_ptr += kv_head * prefix * D
    pv_ptr += kv_head * prefix * V
    k_ptr += batch * k_batch + kv_head * k_head
    v_ptr += batch * v_batch + kv_head * v_head
    y = tl.zeros((block_m, block_v), tl.float32)
    peak, total = tl.full((block_m,), LOWEST, tl.float32), tl.zeros((block_m,), tl.float32)
    scale = scale * LOG2_E
    whole = prefix // block_n * block_n
    y, peak, total = _read(
        y, peak, total, q, pk_ptr, pv_ptr, row, start, 0, whole, prefix, D, V, scale,
        D, block_d, V, block_v, block_n, False, False,
    )  # fmt: skip
    y, peak, total = _read(
        y, peak, total, q, pk_ptr, pv_ptr, row, start, whole, prefix, prefix, D, V, scale,
        D, block_d, V, block_v, block_n, True, False,
    )  # fmt: skip
    first, full, diagonal, end = key_span(start, row, m, time, block_m, block_n, packed)
    if packed:
        y, peak, total = _read(
            y, peak, total, q, k_ptr, v_ptr, row, start, first, full, time, k_row, v_row, scale,
            D, block_d, V, block_v, block_n, True, True,
        )  # fmt: skip
    y, peak, total = _read(
        y, peak, total, q, k_ptr, v_ptr, row, start, full, diagonal, time, k_row, v_row, scale,
        D, block_d, V, block_v, block_n, False, True,
    )  # fmt: skip
    y, peak, total = _read(
        y, peak, total, q, k_ptr, v_ptr, row, start, tl.maximum(diagonal, first), end, time, k_row, v_row, scale,
        D, block_d, V, block_v, block_n, True, True,
    )  # fmt: skip
    total = tl.where(row < time, total, 1.0)
    at = (batch * time * heads + head) * V
    store_tile(y_ptr + at, row, heads * V, time, y / total[:, None], V, block_v)
    if keep:
        tl.store(lse_ptr + (batch * heads + head) * time + row, peak + tl.log2(total), mask=row < time)


@triton.jit(do_not_specialize=["time"])
def prepare(
    dy_ptr, y_ptr, lse_ptr, numbers_ptr, time, heads, scale, V: tl.constexpr, block_v: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    row = tl.program_id(1) * tile + tl.arange(0, tile)
    at, inside = (batch * time * heads + head) * V, row < time
    dy = load_tile(dy_ptr + at, row, heads * V, time, V, block_v, True).to(tl.float32)
    y = load_tile(y_ptr + at, row, heads * V, time, V, block_v, True).to(tl.float32)
    lse = tl.load(lse_ptr + (batch * heads + head) * time + row, mask=inside, other=float("inf"))  # or weights of zero
    line = line_of(time)
    numbers_ptr += (batch * heads + head) * 2 * line + row
    tl.store(numbers_ptr, lse / (-scale * LOG2_E), mask=row < line)
    tl.store(numbers_ptr + line, -tl.sum(dy * y, 1), mask=row < line)


@triton.jit
def _to_keys(
    dk, dv, k, v, q_ptr, dy_ptr, numbers_ptr, starts_ptr, key, first, near, second, tiles, time, heads, q_row,
    q_head, scale, group: tl.constexpr, D: tl.constexpr, block_d: tl.constexpr, V: tl.constexpr, block_v: tl.constexpr,
    block_m: tl.constexpr, packed: tl.constexpr, masked: tl.constexpr, causal: tl.constexpr,
):  # fmt: skip
    line = line_of(time)
    for step in range(0, group * tiles):
        i, m = query_tile(step, first, near, second, tiles, group, block_m)
        row = m + tl.arange(0, block_m)
        q = load_tile(q_ptr + i * q_head, row, q_row, time, D, block_d, masked)
        dy = load_tile(dy_ptr + i * V, row, heads * V, time, V, block_v, masked)
        inside, numbers = row < line, numbers_ptr + 2 * i * line + row
        base = tl.load(numbers, mask=inside, other=float("-inf"))
        minus_delta = tl.load(numbers + line, mask=inside, other=0.0)
        start = tl.zeros((block_m,), tl.int32)
        if packed and masked and causal:
            start = tl.load(starts_ptr + row, mask=row < time, other=0)
        s = dot_onto(k, tl.trans(q), base)
        if causal:
            s = masked_score(s, row[None, :], key[:, None], start[None, :], masked)
        p = tl.exp2(s * scale)
        dp = dot_onto(v, tl.trans(dy), minus_delta)
        dv = dot(p.to(dy.dtype), dy, dv)
        dk = dot((p * dp).to(q.dtype), q, dk)
    return dk, dv


@triton.jit(do_not_specialize=["time"])
def key_gradients(
    q_ptr, k_ptr, v_ptr, starts_ptr, ends_ptr, dy_ptr, numbers_ptr, dk_ptr, dv_ptr, time, heads,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, scale,
    group: tl.constexpr, D: tl.constexpr, block_d: tl.constexpr, V: tl.constexpr, block_v: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, packed: tl.constexpr,
):  # fmt: skip
    kv_heads = heads // group
    batch, kv_head = (tl.program_id(0) // kv_heads).to(tl.int64), tl.program_id(0) % kv_heads
    n = tl.program_id(1) * block_n  # the longest first
    key = n + tl.arange(0, block_n)
    k = load_tile(k_ptr + batch * k_batch + kv_head * k_head, key, k_row, time, D, block_d, True)
    v = load_tile(v_ptr + batch * v_batch + kv_head * v_head, key, v_row, time, V, block_v, True)
    dk = tl.zeros((block_n, block_d), tl.float32)
    dv = tl.zeros((block_n, block_v), tl.float32)
    first, below, full, near, whole, far = query_span(ends_ptr + batch * time, n, time, block_m, block_n, packed)
    head = kv_head * group
    q = q_ptr + batch * q_batch + head * q_head
    dy = dy_ptr + (batch * time * heads + head) * V
    numbers = numbers_ptr + (batch * heads + head) * 2 * line_of(time)
    starts_ptr += batch * time
    dk, dv = _to_keys(
        dk, dv, k, v, q, dy, numbers, starts_ptr, key, first, near, full, near + far, time, heads, q_row, q_head,
        scale * LOG2_E, group, D, block_d, V, block_v, block_m, packed, True, True,
    )  # fmt: skip
    dk, dv = _to_keys(
        dk, dv, k, v, q, dy, numbers, starts_ptr, key, below, whole, below, whole, time, heads, q_row, q_head,
        scale * LOG2_E, group, D, block_d, V, block_v, block_m, packed, False, True,
    )  # fmt: skip
    store_tile(dk_ptr + (batch * time * kv_heads + kv_head) * D, key, kv_heads * D, time, dk * scale, D, block_d)
    store_tile(dv_ptr + (batch * time * kv_heads + kv_head) * V, key, kv_heads * V, time, dv, V, block_v)


@triton.jit(do_not_specialize=["time", "parts"])
def prefix_gradients(
    q_ptr, pk_ptr, pv_ptr, dy_ptr, numbers_ptr, dk_ptr, dv_ptr, time, heads, prefix, share, parts,
    q_batch, q_row, q_head, scale,
    group: tl.constexpr, D: tl.constexpr, block_d: tl.constexpr, V: tl.constexpr, block_v: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    kv_heads = heads // group
    kv_head = tl.program_id(0) % kv_heads
    batch, part = (tl.program_id(2) // parts).to(tl.int64), tl.program_id(2) % parts
    key = tl.program_id(1) * block_n + tl.arange(0, block_n)
    k = load_tile(pk_ptr + kv_head * prefix * D, key, D, prefix, D, block_d, True)
    v = load_tile(pv_ptr + kv_head * prefix * V, key, V, prefix, V, block_v, True)
    dk = tl.zeros((block_n, block_d), tl.float32)
    dv = tl.zeros((block_n, block_v), tl.float32)
    first, end = part * share, tl.minimum((part + 1) * share, time)
    whole = tl.maximum(end - first, 0) // block_m
    rest = tl.cdiv(tl.maximum(end - first, 0), block_m) - whole
    head = kv_head * group
    q = q_ptr + batch * q_batch + head * q_head
    dy = dy_ptr + (batch * time * heads + head) * V
    numbers = numbers_ptr + (batch * heads + head) * 2 * line_of(time)
    dk, dv = _to_keys(
        dk, dv, k, v, q, dy, numbers, numbers, key, first, whole, first, whole, time, heads, q_row, q_head,
        scale * LOG2_E, group, D, block_d, V, block_v, block_m, False, False, False,
    )  # fmt: skip
    dk, dv = _to_keys(
        dk, dv, k, v, q, dy, numbers, numbers, key, first + whole * block_m, rest, first, rest, time, heads,
        q_row, q_head, scale * LOG2_E, group, D, block_d, V, block_v, block_m, False, True, False,
    )  # fmt: skip
    at = (tl.program_id(2).to(tl.int64) * kv_heads + kv_head) * prefix
    store_tile(dk_ptr + at * D, key, D, prefix, dk * scale, D, block_d)
    store_tile(dv_ptr + at * V, key, V, prefix, dv, V, block_v)


@triton.jit
def _to_queries(
    dq, q, dy, base, minus_delta, k_ptr, v_ptr, row, start, first, end, keys, k_row, v_row, scale,
    D: tl.constexpr, block_d: tl.constexpr, V: tl.constexpr, block_v: tl.constexpr, block_n: tl.constexpr,
    masked: tl.constexpr, causal: tl.constexpr,
):  # fmt: skip
    for n in range(first, end, block_n):
        key = n + tl.arange(0, block_n)
        k = load_tile(k_ptr, key, k_row, keys, D, block_d, masked)
        v = load_tile(v_ptr, key, v_row, keys, V, block_v, masked)
        s = dot(q, tl.trans(k), tl.zeros((q.shape[0], block_n), tl.float32))
        s = _seen(s, row[:, None], key[None, :], start[:, None], keys, masked, causal)
        p = tl.exp2(s * scale + base[:, None])
        dp = dot(dy, tl.trans(v), tl.zeros((q.shape[0], block_n), tl.float32))
        dq = dot((p * (dp + minus_delta[:, None])).to(k.dtype), k, dq)
    return dq


@triton.jit(do_not_specialize=["time"])
def query_gradients(
    q_ptr, k_ptr, v_ptr, pk_ptr, pv_ptr, starts_ptr, dy_ptr, numbers_ptr, dq_ptr, time, heads, prefix,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, scale,
    group: tl.constexpr, D: tl.constexpr, block_d: tl.constexpr, V: tl.constexpr, block_v: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, packed: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    m = (tl.num_programs(1) - 1 - tl.program_id(1)) * block_m
    row = m + tl.arange(0, block_m)
    inside = row < time
    start = tl.zeros((block_m,), tl.int32)
    if packed:
        start = tl.load(starts_ptr + batch * time + row, mask=inside, other=0)
    kv_head = head // group
    pk_ptr += kv_head * prefix * D
    pv_ptr += kv_head * prefix * V
    k_ptr += batch * k_batch + kv_head * k_head
    v_ptr += batch * v_batch + kv_head * v_head
    q = load_tile(q_ptr + batch * q_batch + head * q_head, row, q_row, time, D, block_d, True)
    dy = load_tile(dy_ptr + (batch * time * heads + head) * V, row, heads * V, time, V, block_v, True)
    log_scale = scale * LOG2_E
    line = line_of(time)
    numbers = numbers_ptr + (batch * heads + head) * 2 * line + row
    base = tl.load(numbers, mask=inside, other=float("-inf")) * log_scale
    minus_delta = tl.load(numbers + line, mask=inside, other=0.0)
    dq = tl.zeros((block_m, block_d), tl.float32)
    whole = prefix // block_n * block_n
    dq = _to_queries(
        dq, q, dy, base, minus_delta, pk_ptr, pv_ptr, row, start, 0, whole, prefix, D, V, log_scale,
        D, block_d, V, block_v, block_n, False, False,
    )  # fmt: skip
    dq = _to_queries(
        dq, q, dy, base, minus_delta, pk_ptr, pv_ptr, row, start, whole, prefix, prefix, D, V, log_scale,
        D, block_d, V, block_v, block_n, True, False,
    )  # fmt: skip
    first, full, diagonal, end = key_span(start, row, m, time, block_m, block_n, packed)
    if packed:
        dq = _to_queries(
            dq, q, dy, base, minus_delta, k_ptr, v_ptr, row, start, first, full, time, k_row, v_row, log_scale,
            D, block_d, V, block_v, block_n, True, True,
        )  # fmt: skip
    dq = _to_queries(
        dq, q, dy, base, minus_delta, k_ptr, v_ptr, row, start, full, diagonal, time, k_row, v_row, log_scale,
        D, block_d, V, block_v, block_n, False, True,
    )  # fmt: skip
    dq = _to_queries(
        dq, q, dy, base, minus_delta, k_ptr, v_ptr, row, start, tl.maximum(diagonal, first), end, time, k_row, v_row,
        log_scale, D, block_d, V, block_v, block_n, True, True,
    )  # fmt: skip
    store_tile(dq_ptr + (batch * time * heads + head) * D, row, heads * D, time, dq * scale, D, block_d)
