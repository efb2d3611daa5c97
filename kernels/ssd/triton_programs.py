"""The programs of `triton`; formulas in `reference` and `eager`.

0. `decays`: what depends on dt, A and positions alone, once for all that follows.
1. `states`: a program owns some columns of one head's state and runs over a row's chunks; it stores the state before
   each chunk. Backwards over the chunks, with dy and C in place of x and B, it gives the gradients of the states.
2. `outputs`: a program makes the outputs of one chunk and head. `walk` does both: a program owns a whole head, whose
   state stays in registers, and writes outputs as it runs over the row's chunks.
3. `shared_gradients`: a program takes one chunk and some heads of a group, adding up what they give to some columns of
   C, or of B. What several programs give to one number is added in a fixed order afterwards: equal inputs give equal
   bits. As sum_j (M' M)_ij + into_i dy_i . (S0 C_i) = C_i . C'_i, and the like for B, c' is a difference of two such.
4. `gradients`: a program makes the gradients of x and dt of one chunk and head, and its parts of those of A and D.
5. `step`: one token, for decoding, the state read once and written once.

Tensor cores multiply bfloat16. Of two factors one is always an argument, exact in that dtype; the other, computed in
float32, is the sum of two bfloat16 numbers (`_dot`), so results are those of float32. float32 arguments are multiplied
as three products of TF32.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _halves(a, dtype: tl.constexpr):
    # float32 as a sum of two bfloat16. The first is cut off, not rounded: converting it back would be slow.
    high = (a.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    return high.to(dtype), (a - high).to(dtype)


@triton.jit
def _dot(a, b):
    # One of a and b may be float32 beside bfloat16.
    if a.dtype == b.dtype:
        out = tl.dot(a, b, input_precision="tf32x3")
    elif a.dtype == tl.float32:
        high, low = _halves(a, b.dtype)
        out = tl.dot(high, b, tl.dot(low, b))
    else:
        high, low = _halves(b, a.dtype)
        out = tl.dot(a, high, tl.dot(a, low))
    return out


@triton.jit
def _rounded(a, dtype: tl.constexpr, exact: tl.constexpr):
    return a if exact else a.to(dtype)


@triton.jit
def _tile(ptr, row, inside, stride, first, width, block: tl.constexpr):
    # Columns from `first` on, `width` of them, of some rows.
    column = tl.arange(0, block)
    at = row[:, None] * stride + (first + column)[None, :]
    return tl.load(ptr + at, mask=inside[:, None] & (column < width)[None, :], other=0.0)


@triton.jit
def _put(ptr, row, inside, stride, first, width, values, block: tl.constexpr):
    column = tl.arange(0, block)
    at = row[:, None] * stride + (first + column)[None, :]
    tl.store(ptr + at, values.to(ptr.dtype.element_ty), mask=inside[:, None] & (column < width)[None, :])


@triton.jit
def _chunk(batch, chunk, time, Q: tl.constexpr):
    # Rows of a chunk's tokens, and which of them there are.
    t = chunk * Q + tl.arange(0, Q)
    return batch * time + t, t < time


@triton.jit
def _decays(
    held_ptr, plane, through_ptr, document_ptr, batch, chunk, chunks, head, heads: tl.constexpr, Q: tl.constexpr
):
    # Of a head, as `decays` left it: dt; c in units of log2(e), as exponentials are powers of 2; the number of the
    # token's document; decays into each token, out of it to the end, the same times dt, and through the chunk. Read
    # where they are needed they come in the layout that is needed; made there, they would go through shared memory.
    row = (batch * heads + head) * chunks + chunk
    at, plane = held_ptr + row * Q + tl.arange(0, Q), tl.cast(plane, tl.int64)
    c, dt, into, out = tl.load(at), tl.load(at + plane), tl.load(at + 2 * plane), tl.load(at + 3 * plane)
    weight = tl.load(at + 4 * plane)
    document = tl.load(document_ptr + (batch * chunks + chunk) * Q + tl.arange(0, Q))
    return dt, c, document, into, out, weight, tl.load(through_ptr + row)


@triton.jit
def _within(c, document, Q: tl.constexpr, reverse: tl.constexpr):
    # Decay from token j (column) to token i (row), or in reverse from the row's to the column's; zero where the second
    # is before the first or in a later document. Both are differences of numbers, which the exponent gets if negative:
    # truth values, made while a matrix product runs, would be packed into bits and out again.
    t = tl.arange(0, Q).to(tl.float32)
    if reverse:
        exponent, apart, same = c[None, :] - c[:, None], t[None, :] - t[:, None], document[:, None] - document[None, :]
    else:
        exponent, apart, same = c[:, None] - c[None, :], t[:, None] - t[None, :], document[None, :] - document[:, None]
    return tl.exp2(exponent + tl.minimum(tl.minimum(apart, same), 0.0) * 1e30)


@triton.jit(do_not_specialize=["time", "chunks", "plane"])
def decays(
    dt_ptr, A_ptr, position_ptr, held_ptr, through_ptr, document_ptr, plane, time, chunks, heads: tl.constexpr,
    Q: tl.constexpr, block_h: tl.constexpr,
):  # fmt: skip
    tiles = (heads + block_h - 1) // block_h
    h = tl.program_id(0) % tiles * block_h + tl.arange(0, block_h)
    batch_chunk = (tl.program_id(0) // tiles).to(tl.int64)
    batch, chunk = batch_chunk // chunks, batch_chunk % chunks
    token, inside = _chunk(batch, chunk, time, Q)
    place = tl.load(position_ptr + token, mask=inside, other=-1)
    real = (place >= 0)[:, None] & (h < heads)[None, :]
    dt = tl.load(dt_ptr + token[:, None] * heads + h[None, :], mask=real, other=0.0)
    c = tl.cumsum(dt * (tl.load(A_ptr + h, mask=h < heads, other=0.0) * LOG2_E)[None, :], 0)
    document = tl.cumsum((place == 0).to(tl.float32), 0)
    q = tl.arange(0, Q)
    end = tl.sum(tl.where((q == Q - 1)[:, None], c, 0.0), 0)
    newest = tl.max(document, 0)
    row = (batch * heads + h) * chunks + chunk
    at, plane = held_ptr + row[None, :] * Q + q[:, None], tl.cast(plane, tl.int64)
    held = (h < heads)[None, :] & (q >= 0)[:, None]
    tl.store(at, c, mask=held)
    tl.store(at + plane, dt, mask=held)
    tl.store(at + 2 * plane, tl.exp2(tl.where((document == 0)[:, None], c, float("-inf"))), mask=held)
    out = tl.exp2(tl.where((document == newest)[:, None], end[None, :] - c, float("-inf")))
    tl.store(at + 3 * plane, out, mask=held)
    tl.store(at + 4 * plane, dt * out, mask=held)
    tl.store(through_ptr + row, tl.exp2(tl.where(newest == 0, end, float("-inf"))), mask=h < heads)
    if tl.program_id(0) % tiles == 0:
        tl.store(document_ptr + batch_chunk * Q + q, document)


@triton.jit(do_not_specialize=["time", "chunks", "plane"])
def states(
    x_ptr, B_ptr, held_ptr, through_ptr, document_ptr, first_ptr, states_ptr, last_ptr, plane, time, chunks, x_row,
    B_row, reverse: tl.constexpr, heads: tl.constexpr, per_group: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    Q: tl.constexpr, block_p: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    tiles = (N + block_n - 1) // block_n
    n = tl.program_id(0) % tiles * block_n
    batch_head = tl.program_id(0) // tiles
    head = batch_head % heads
    batch = (batch_head // heads).to(tl.int64)
    p = tl.arange(0, block_p)
    own = batch_head.to(tl.int64) * P + p
    state = _tile(first_ptr, own, p < P, N, n, N - n, block_n)
    for i in range(chunks):
        chunk = chunks - 1 - i if reverse else i
        token, inside = _chunk(batch, chunk, time, Q)
        _dt, _c, _document, into, _out, weight, through = _decays(
            held_ptr, plane, through_ptr, document_ptr, batch, chunk, chunks, head, heads, Q
        )
        x = _tile(x_ptr, token, inside, x_row, head * P, P, block_p)
        B = _tile(B_ptr, token, inside, B_row, head // per_group * N + n, N - n, block_n)
        weight = into if reverse else weight
        _put(states_ptr, ((batch * chunks + chunk) * heads + head) * P + p, p < P, N, n, N - n, state, block_n)
        state = through * state + _dot(tl.trans(x).to(tl.float32) * weight[None, :], B)
    _put(last_ptr, own, p < P, N, n, N - n, state, block_n)


@triton.jit(do_not_specialize=["time", "chunks", "plane"])
def outputs(
    x_ptr, B_ptr, C_ptr, D_ptr, held_ptr, through_ptr, document_ptr, before_ptr, y_ptr, plane, time, chunks, x_row,
    B_row, C_row, skip: tl.constexpr, heads: tl.constexpr, per_group: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    Q: tl.constexpr, block_p: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    batch_chunk = (tl.program_id(0) // heads).to(tl.int64)
    token, inside = _chunk(batch_chunk // chunks, batch_chunk % chunks, time, Q)
    first = head // per_group * N
    p = tl.arange(0, block_p)
    scores = tl.zeros((Q, Q), tl.float32)
    y = tl.zeros((Q, block_p), tl.float32)
    for n in range(0, N, block_n):
        B = _tile(B_ptr, token, inside, B_row, first + n, N - n, block_n)
        C = _tile(C_ptr, token, inside, C_row, first + n, N - n, block_n)
        before = _tile(before_ptr, (batch_chunk * heads + head) * P + p, p < P, N, n, N - n, block_n)
        scores += _dot(C, tl.trans(B))
        y += _dot(C, tl.trans(before))
    dt, c, document, into, _out, _weight, _through = _decays(
        held_ptr, plane, through_ptr, document_ptr, batch_chunk // chunks, batch_chunk % chunks, chunks, head, heads, Q
    )
    x = _tile(x_ptr, token, inside, x_row, head * P, P, block_p)
    y = into[:, None] * y + _dot(scores * _within(c, document, Q, False) * dt[None, :], x)
    if skip:
        y += tl.load(D_ptr + head) * x.to(tl.float32)
    _put(y_ptr, token, inside, heads * P, head * P, P, y, block_p)


@triton.jit(do_not_specialize=["time", "chunks", "plane"])
def walk(
    x_ptr, B_ptr, C_ptr, D_ptr, held_ptr, through_ptr, document_ptr, first_ptr, states_ptr, last_ptr, y_ptr, plane,
    time, chunks, x_row, B_row, C_row, keeps: tl.constexpr, skip: tl.constexpr, heads: tl.constexpr,
    per_group: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, block_p: tl.constexpr,
    block_n: tl.constexpr, exact: tl.constexpr,
):  # fmt: skip
    # Turned so that the state is a left factor, which may come from registers: y' = into S C' + x' (B C' * M'). Without
    # `exact`, the state and B C' * M' are rounded for y, as y itself will be; the state that goes on is not.
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    p = tl.arange(0, block_p)
    row = tl.program_id(0).to(tl.int64)
    group = head // per_group * N
    state = _tile(first_ptr, row * P + p, p < P, N, 0, N, block_n)
    if skip:
        D = tl.load(D_ptr + head)
    for chunk in range(chunks):
        token, inside = _chunk(batch, chunk, time, Q)
        x = _tile(x_ptr, token, inside, x_row, head * P, P, block_p)
        B = _tile(B_ptr, token, inside, B_row, group, N, block_n)
        C = _tile(C_ptr, token, inside, C_row, group, N, block_n)
        if keeps:
            _put(states_ptr, ((batch * chunks + chunk) * heads + head) * P + p, p < P, N, 0, N, state, block_n)
        dt, c, document, into, _out, weight, through = _decays(
            held_ptr, plane, through_ptr, document_ptr, batch, chunk, chunks, head, heads, Q
        )
        y = into[None, :] * _dot(_rounded(state, x.dtype, exact), tl.trans(C))
        scores = _dot(B, tl.trans(C)) * (_within(c, document, Q, True) * dt[:, None])
        y += _dot(tl.trans(x), _rounded(scores, x.dtype, exact))
        turned = tl.trans(x).to(tl.float32)
        if skip:
            y += D * turned
        _put(y_ptr, token, inside, heads * P, head * P, P, tl.trans(y), block_p)
        state = through * state + _dot(turned * weight[None, :], B)
    _put(last_ptr, row * P + p, p < P, N, 0, N, state, block_n)


@triton.jit(do_not_specialize=["chunks", "rows", "plane"])
def shared_gradients(
    a_ptr, b_ptr, own_ptr, other_ptr, held_ptr, through_ptr, document_ptr, states_ptr, gradient_ptr, dc_ptr, plane,
    time, chunks, rows, a_row, b_row, own_row, other_row, reverse: tl.constexpr, splits: tl.constexpr,
    heads: tl.constexpr, per_group: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
    block_p: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    # Of C, from a = dy, b = x, own = C, other = B and the states before; in reverse of B, with each pair swapped and
    # the gradients of the states after.
    tiles: tl.constexpr = (N + block_n - 1) // block_n
    groups: tl.constexpr = heads // per_group
    tile = tl.program_id(0) % tiles
    split = tl.program_id(0) // tiles % splits
    group = tl.program_id(0) // tiles // splits % groups
    batch_chunk = (tl.program_id(0) // tiles // splits // groups).to(tl.int64)
    token, inside = _chunk(batch_chunk // chunks, batch_chunk % chunks, time, Q)
    n = tile * block_n
    own = _tile(own_ptr, token, inside, own_row, group * N + n, N - n, block_n).to(tl.float32)
    other = _tile(other_ptr, token, inside, other_row, group * N + n, N - n, block_n)
    total = tl.zeros((Q, block_n), tl.float32)
    p = tl.arange(0, block_p)
    for i in range(per_group // splits):
        head = group * per_group + split * (per_group // splits) + i
        dt, c, document, into, out, _weight, _through = _decays(
            held_ptr, plane, through_ptr, document_ptr, batch_chunk // chunks, batch_chunk % chunks, chunks, head,
            heads, Q,
        )  # fmt: skip
        a = _tile(a_ptr, token, inside, a_row, head * P, P, block_p)
        b = _tile(b_ptr, token, inside, b_row, head * P, P, block_p)
        states = _tile(states_ptr, (batch_chunk * heads + head) * P + p, p < P, N, n, N - n, block_n)
        scores = _dot(a, tl.trans(b)) * _within(c, document, Q, reverse)
        if reverse:
            gradient = dt[:, None] * (out[:, None] * _dot(a, states) + _dot(scores, other))
        else:
            gradient = into[:, None] * _dot(a, states) + _dot(scores * dt[None, :], other)
        total += gradient
        tl.store(dc_ptr + (tile * rows + token) * heads + head, tl.sum(gradient * own, 1), mask=inside)
    _put(gradient_ptr, split * rows + token, inside, groups * N, group * N + n, N - n, total, block_n)


@triton.jit(do_not_specialize=["time", "chunks", "plane"])
def gradients(
    x_ptr, A_ptr, B_ptr, C_ptr, D_ptr, position_ptr, held_ptr, through_ptr, document_ptr, before_ptr, dafter_ptr,
    dy_ptr, dc_ptr, dx_ptr, ddt_ptr, dA_ptr, dD_ptr, plane, time, chunks, x_row, B_row, C_row, dy_row,
    skip: tl.constexpr, heads: tl.constexpr, per_group: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    Q: tl.constexpr, block_p: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    batch_chunk = (tl.program_id(0) // heads).to(tl.int64)
    token, inside = _chunk(batch_chunk // chunks, batch_chunk % chunks, time, Q)
    first = head // per_group * N
    p = tl.arange(0, block_p)
    row = (batch_chunk * heads + head) * P + p
    scores = tl.zeros((Q, Q), tl.float32)
    pulled = tl.zeros((Q, block_p), tl.float32)
    meeting = tl.zeros((block_p,), tl.float32)
    for n in range(0, N, block_n):
        B = _tile(B_ptr, token, inside, B_row, first + n, N - n, block_n)
        C = _tile(C_ptr, token, inside, C_row, first + n, N - n, block_n)
        dafter = _tile(dafter_ptr, row, p < P, N, n, N - n, block_n)
        meeting += tl.sum(dafter * _tile(before_ptr, row, p < P, N, n, N - n, block_n), 1)
        scores += _dot(B, tl.trans(C))
        pulled += _dot(B, tl.trans(dafter))
    dt, c, document, _into, out, _weight, through = _decays(
        held_ptr, plane, through_ptr, document_ptr, batch_chunk // chunks, batch_chunk % chunks, chunks, head, heads, Q
    )
    dy = _tile(dy_ptr, token, inside, dy_row, head * P, P, block_p)
    x = _tile(x_ptr, token, inside, x_row, head * P, P, block_p).to(tl.float32)
    pulled = out[:, None] * pulled
    # Of dt x.
    dP = pulled + _dot(scores * _within(c, document, Q, True), dy)
    dx = dt[:, None] * dP
    if skip:
        dx += tl.load(D_ptr + head) * dy.to(tl.float32)
        tl.store(dD_ptr + batch_chunk * heads + head, tl.sum(tl.sum(x * dy.to(tl.float32), 1), 0))
    _put(dx_ptr, token, inside, heads * P, head * P, P, dx, block_p)
    # Of dt A: what c gets, from there to the end.
    dc = tl.load(dc_ptr + token * heads + head, mask=inside, other=0.0)
    dend = through * tl.sum(meeting, 0) + tl.sum(dt * tl.sum(x * pulled, 1), 0)
    da = dend + tl.cumsum(dc, 0, reverse=True)
    place = tl.load(position_ptr + token, mask=inside, other=-1)
    ddt = tl.load(A_ptr + head) * da + tl.sum(x * dP, 1)
    tl.store(ddt_ptr + token * heads + head, tl.where(place >= 0, ddt, 0.0), mask=inside)
    tl.store(dA_ptr + batch_chunk * heads + head, tl.sum(dt * da, 0))


@triton.jit
def step(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, position_ptr, before_ptr, after_ptr, y_ptr, x_row, B_row, C_row,
    skip: tl.constexpr, heads: tl.constexpr, per_group: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    tile: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    tiles = (P + tile - 1) // tile
    batch_head = (tl.program_id(0) // tiles).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    p = tl.program_id(0) % tiles * tile + tl.arange(0, tile)
    n = tl.arange(0, block_n)
    place = tl.load(position_ptr + batch)
    dt = tl.where(place < 0, 0.0, tl.load(dt_ptr + batch_head))
    decay = tl.where(place == 0, 0.0, tl.exp(dt * tl.load(A_ptr + head)))
    x = tl.load(x_ptr + batch * x_row + head * P + p, mask=p < P, other=0.0).to(tl.float32)
    B = tl.load(B_ptr + batch * B_row + head // per_group * N + n, mask=n < N, other=0.0).to(tl.float32)
    C = tl.load(C_ptr + batch * C_row + head // per_group * N + n, mask=n < N, other=0.0).to(tl.float32)
    before = _tile(before_ptr, batch_head * P + p, p < P, N, 0, N, block_n).to(tl.float32)
    state = decay * before + (dt * x)[:, None] * B[None, :]
    _put(after_ptr, batch_head * P + p, p < P, N, 0, N, state, block_n)
    y = tl.sum(state * C[None, :], 1)
    if skip:
        y += tl.load(D_ptr + head) * x
    tl.store(y_ptr + batch_head * P + p, y.to(y_ptr.dtype.element_ty), mask=p < P)
