"""The recurrence of Mamba-2 in plain PyTorch (arXiv 2405.21060, equation 2 with scalar A, and its section 6).

For every head, with state S `(head_dim, state_size)`, token by token (`recurrence`):

    S_t = exp(dt_t A) S_(t-1) + dt_t x_t B_t^T          y_t = S_t C_t + D x_t

A chunk of Q tokens at once (`ssd`), with c_i = sum over k <= i of dt_k A within the chunk:

    y_i = sum over j <= i of (C_i . B_j) exp(c_i - c_j) dt_j x_j  +  exp(c_i) S_before C_i  +  D x_i
    S_after = exp(c_Q) S_before + sum over j of exp(c_Q - c_j) dt_j x_j B_j^T

A token at position 0 begins a document: decays across it are zero. A token at position -1 is padding: its dt counts as
zero, so the state passes it unchanged. Exponents are masked before `exp`: above the diagonal they are positive and may
overflow, and infinity times zero is NaN. Sums and states are in float32 (float64 if an argument is), whatever autocast
says: increments of a slow head are below the resolution of bfloat16.

Per token and head a chunk costs about 2 Q (head_dim + state_size / heads of a group) + 4 head_dim state_size FLOPs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    position_ids: Tensor,
    state: Tensor | None = None,
    D: Tensor | None = None,
    chunk: int = CHUNK,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor]:
    """Runs the recurrence over a call's tokens.

    Args:
        x: `(batch, time, heads, head_dim)`.
        dt: `(batch, time, heads)`, not negative.
        A: `(heads,)`, negative; D: `(heads,)` or None.
        B, C: `(batch, time, groups, state_size)`; heads is a multiple of groups, consecutive heads share a group.
        position_ids: `(batch, time)` long, from 0 in each document; -1 is padding, whose output is noise, but finite.
        state: `(batch, heads, head_dim, state_size)` before the call; None: zeros.
        chunk: tokens of a chunk; changes rounding only.
        overwrite: the new state is written over the given one, which is returned. Not for training.
    Returns: y, of the shape and dtype of x, and the state after each row's last token.
    """
    with torch.autocast(x.device.type, enabled=False):
        wide, before = widened(x, dt, A, B, C, state)
        if x.shape[1] == 1:
            y, after = step(*wide, position_ids, before)
        else:
            y, after = _chunked(*wide, position_ids, before, chunk)
        return with_skip(y, x, D), written(state, after) if overwrite else after


def recurrence(x, dt, A, B, C, position_ids, state=None, D=None) -> tuple[Tensor, Tensor]:
    """As `ssd`, token by token: the definition, to test the others with."""
    (wide_x, dt, A, B, C), after = widened(x, dt, A, B, C, state)
    y = []
    for t in range(x.shape[1]):
        now = slice(t, t + 1)
        out, after = step(wide_x[:, now], dt[:, now], A, B[:, now], C[:, now], position_ids[:, now], after)
        y.append(out)
    return with_skip(torch.cat(y, 1), x, D), after


def widened(x, dt, A, B, C, state) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The arguments in the dtype of the sums, and the state, which may have been left out."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, dt.dtype), torch.float32)
    if state is None:
        state = x.new_zeros((x.shape[0], *x.shape[2:], B.shape[-1]), dtype=dtype)
    return (x.to(dtype), dt.to(dtype), A.to(dtype), B.to(dtype), C.to(dtype)), state.to(dtype)


def with_skip(y: Tensor, x: Tensor, D: Tensor | None) -> Tensor:
    """y, with `D x` added if there is a D, in the dtype of x."""
    return (y if D is None else y + D.to(y.dtype)[:, None] * x.to(y.dtype)).to(x.dtype)


def written(state: Tensor | None, after: Tensor) -> Tensor:
    """The state with its new value in it."""
    return after if state is None else state.copy_(after)


def step(x, dt, A, B, C, position_ids, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token; arguments as for `ssd`, all in one dtype."""
    dt = dt[:, 0].masked_fill(position_ids < 0, 0)
    decay = (dt * A).exp().masked_fill(position_ids == 0, 0)
    rows, groups = x.shape[0], B.shape[2]
    new = (dt[..., None] * x[:, 0]).view(rows, groups, -1, 1) * B[:, 0, :, None]
    after = decay[..., None, None] * state + new.view_as(state)
    y = after.view(rows, groups, -1, B.shape[-1]) @ C[:, 0, :, :, None]
    return y.view_as(x), after


class Chunks(NamedTuple):
    """A call's tokens in chunks, and how much of each token survives until where."""

    x: Tensor
    """dt x, `(batch, chunks, Q, heads, head_dim)`."""
    B: Tensor
    C: Tensor
    """`(batch, chunks, groups, Q, state_size)`."""
    within: Tensor
    """Decay from token j to token i, zero unless j <= i in one document: `(batch, chunks, heads, Q, Q)`."""
    into: Tensor
    """Decay of the state before the chunk until token i, `(batch, chunks, Q, heads)`."""
    out: Tensor
    """Decay of token j until the chunk's end, `(batch, chunks, Q, heads)`."""
    through: Tensor
    """Decay of the state across the chunk, `(batch, chunks, heads)`."""


def in_chunks(x, dt, A, B, C, position_ids, chunk: int) -> Chunks:
    """Cuts time into chunks; behind the last token they are filled with padding."""
    size = min(chunk, x.shape[1])
    fill = -x.shape[1] % size
    if fill:
        x, B, C = (F.pad(part, (0, 0, 0, 0, 0, fill)) for part in (x, B, C))
        dt, position_ids = F.pad(dt, (0, 0, 0, fill)), F.pad(position_ids, (0, fill), value=-1)
    x, dt, B, C, position_ids = (part.unflatten(1, (-1, size)) for part in (x, dt, B, C, position_ids))
    dt = dt.masked_fill((position_ids < 0)[..., None], 0)
    total = (dt * A).cumsum(2)
    document = (position_ids == 0).cumsum(2)
    last = document[:, :, -1:]
    causal = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
    same = (document[..., :, None] == document[..., None, :]) & causal
    by_head = total.transpose(2, 3)
    return Chunks(
        dt[..., None] * x,
        B.transpose(2, 3),
        C.transpose(2, 3),
        _decay(by_head[..., :, None] - by_head[..., None, :], same[:, :, None]),
        _decay(total, (document == 0)[..., None]),
        _decay(total[:, :, -1:] - total, (document == last)[..., None]),
        _decay(total[:, :, -1], last == 0),
    )


def _decay(exponent: Tensor, where: Tensor) -> Tensor:
    return exponent.masked_fill(~where, -torch.inf).exp()


def by_group(values: Tensor, groups: int) -> Tensor:
    """`(batch, chunks, Q, heads, head_dim)` as `(batch, chunks, groups, Q, heads of a group * head_dim)`: what one B
    and one C meet in a single matrix product."""
    return values.unflatten(3, (groups, -1)).flatten(4).transpose(2, 3)


def by_token(values: Tensor, heads: int) -> Tensor:
    """The inverse of `by_group`."""
    values = values.transpose(2, 3)
    return values.reshape(*values.shape[:3], heads, -1)


def scores(chunks: Chunks) -> Tensor:
    """C_i . B_j with its decay, `(batch, chunks, heads, Q, Q)`."""
    plain = chunks.C @ chunks.B.transpose(-1, -2)
    return (plain[:, :, :, None] * chunks.within.unflatten(2, (plain.shape[2], -1))).flatten(2, 3)


def states(chunks: Chunks, state: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk, `(batch, chunks, heads, head_dim, state_size)`, and the one after the last."""
    groups = chunks.B.shape[2]
    new = by_group(chunks.x * chunks.out[..., None], groups).transpose(-1, -2) @ chunks.B
    new = new.view(*new.shape[:2], *state.shape[1:])
    before = []
    for decay, more in zip(chunks.through[..., None, None].unbind(1), new.unbind(1), strict=True):
        before.append(state)
        state = decay * state + more
    return torch.stack(before, 1), state


def from_state(chunks: Chunks, before: Tensor) -> Tensor:
    """What the states before the chunks give to each token, without decay: `(batch, chunks, Q, heads, head_dim)`."""
    grouped = before.view(*before.shape[:2], chunks.C.shape[2], -1, before.shape[-1])
    return by_token(chunks.C @ grouped.transpose(-1, -2), before.shape[2])


def _chunked(x, dt, A, B, C, position_ids, state: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    chunks = in_chunks(x, dt, A, B, C, position_ids, chunk)
    before, after = states(chunks, state)
    return joined(chunks, before, x.shape[1]), after


def joined(chunks: Chunks, before: Tensor, time: int) -> Tensor:
    """The outputs `(batch, time, heads, head_dim)`."""
    y = (scores(chunks) @ chunks.x.transpose(2, 3)).transpose(2, 3)
    y = y + chunks.into[..., None] * from_state(chunks, before)
    return y.flatten(1, 2)[:, :time]
