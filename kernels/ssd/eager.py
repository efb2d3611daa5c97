"""The recurrence of Mamba-2 with a backward of its own; formulas in `reference`.

Kept for the backward are the arguments and one state a chunk; autograd would keep several matrices of decays, each of
`Q` numbers a token and head. Long texts are read in spans, which bounds those matrices.

With P = dt x, M = (C B^T) * L the scores with decays L, S0 and S1 the states before and after a chunk, a dash for a
gradient:

    M' = dy P^T            P' = M^T dy + out (B S1'^T)         S0' = through S1' + (into dy)^T C
    C' = (M' L) B + (into dy) S0                               B' = (M' L)^T C + (out P) S1'
    c'_i = sum_j (M' M)_ij - sum_j (M' M)_ji + into_i dy_i . (S0 C_i) - out_i P_i . (S1' B_i)
    c'_Q gets, in addition, sum_i out_i P_i . (S1' B_i) + through <S1', S0>

and (dt A)' is the sum of c' over the tokens from there to the chunk's end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nlrl.kernels.ssd import reference
from nlrl.kernels.ssd.reference import CHUNK, Chunks, by_group, by_token, from_state, in_chunks

SPAN = 2048
"""Tokens of a row at once."""


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
    """See `reference.ssd`."""
    if x.shape[1] == 1 and overwrite and state is not None and state.is_contiguous():
        return _step_in_place(x, dt, A, B, C, position_ids, state, D)
    if x.shape[1] <= 1:
        return reference.ssd(x, dt, A, B, C, position_ids, state, D, chunk, overwrite)
    with torch.autocast(x.device.type, enabled=False):
        (wide_x, dt, A, B, C), after = reference.widened(x, dt, A, B, C, state)
        y = []
        for start in range(0, x.shape[1], SPAN):
            at = slice(start, start + SPAN)
            part, after = _SSD.apply(wide_x[:, at], dt[:, at], A, B[:, at], C[:, at], position_ids[:, at], after, chunk)
            y.append(part)
        y = reference.with_skip(torch.cat(y, 1) if len(y) > 1 else y[0], x, D)
        return y, reference.written(state, after) if overwrite else after


def _step_in_place(x, dt, A, B, C, position_ids, state: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token, reading the state twice and writing it twice: decoding many rows is bound by that."""
    with torch.autocast(x.device.type, enabled=False):
        (wide_x, dt, A, B, C), _ = reference.widened(x, dt, A, B, C, state)
        dt = dt[:, 0].masked_fill(position_ids < 0, 0)
        state.mul_((dt * A).exp().masked_fill(position_ids == 0, 0)[..., None, None])
        new = (dt[..., None] * wide_x[:, 0]).view(B.shape[0] * B.shape[2], -1, 1)
        grouped = state.view(new.shape[0], -1, B.shape[-1])
        grouped.baddbmm_(new.to(state.dtype), B.reshape(new.shape[0], 1, -1).to(state.dtype))
        y = torch.bmm(grouped.to(C.dtype), C.reshape(new.shape[0], -1, 1))
        return reference.with_skip(y.view_as(wide_x), x, D), state


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, position_ids, state, chunk):
        chunks = in_chunks(x, dt, A, B, C, position_ids, chunk)
        before, after = reference.states(chunks, state)
        ctx.save_for_backward(x, dt, A, B, C, position_ids, before)
        ctx.chunk = chunk
        return reference.joined(chunks, before, x.shape[1]), after

    @staticmethod
    def backward(ctx, dy: Tensor, dafter: Tensor):
        x, dt, A, B, C, position_ids, before = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            chunks = in_chunks(x, dt, A, B, C, position_ids, ctx.chunk)
            time, size = x.shape[1], chunks.x.shape[2]
            dy = F.pad(dy, (0, 0, 0, 0, 0, -time % size)).unflatten(1, (-1, size))
            reached = dy * chunks.into[..., None]
            dstates, dstate = _state_gradients(chunks, reached, dafter)
            dx, dtotal, dB, dC = _within(chunks, dy)
            dx, dtotal = _across(chunks, dy, before, dstates, dx, dtotal)
            dC += _meets(reached, before, chunks)
            dB += _meets(chunks.x * chunks.out[..., None], dstates, chunks)
            da = dtotal.flip(2).cumsum(2).flip(2)
            dx, da = dx.flatten(1, 2)[:, :time], da.flatten(1, 2)[:, :time]
            dB, dC = (part.transpose(2, 3).flatten(1, 2)[:, :time] for part in (dB, dC))
            padding = (position_ids < 0)[..., None]
            dt = dt.masked_fill(padding, 0)
            ddt = (A * da + (dx * x).sum(-1)).masked_fill(padding, 0)
            return dx * dt[..., None], ddt, (dt * da).sum((0, 1)), dB, dC, None, dstate, None


def _state_gradients(chunks: Chunks, reached: Tensor, dafter: Tensor) -> tuple[Tensor, Tensor]:
    """Of the states after each chunk, `(batch, chunks, heads, head_dim, state_size)`, and before the first."""
    groups = chunks.C.shape[2]
    from_outputs = by_group(reached, groups).transpose(-1, -2) @ chunks.C
    from_outputs = from_outputs.view(*from_outputs.shape[:2], *dafter.shape[1:])
    gradients, gradient = [], dafter
    for i in reversed(range(from_outputs.shape[1])):
        gradients.append(gradient)
        gradient = chunks.through[:, i, :, None, None] * gradient + from_outputs[:, i]
    return torch.stack(gradients[::-1], 1), gradient


def _within(chunks: Chunks, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What stays inside a chunk: gradients of P, of the totals c, of B and of C."""
    groups = chunks.C.shape[2]
    dy = dy.transpose(2, 3)
    mixed = reference.scores(chunks)
    dmixed = dy @ chunks.x.transpose(2, 3).transpose(-1, -2)
    dx = (mixed.transpose(-1, -2) @ dy).transpose(2, 3)
    mixed *= dmixed
    dtotal = (mixed.sum(-1) - mixed.sum(-2)).transpose(2, 3)
    dplain = dmixed.mul_(chunks.within).unflatten(2, (groups, -1)).sum(3)
    return dx, dtotal, dplain.transpose(-1, -2) @ chunks.C, dplain @ chunks.B


def _across(chunks: Chunks, dy, before, dstates, dx, dtotal) -> tuple[Tensor, Tensor]:
    """Adds what comes through the states to the gradients of P and of the totals."""
    heads = dx.shape[3]
    grouped = dstates.view(*dstates.shape[:2], chunks.B.shape[2], -1, dstates.shape[-1])
    pulled = by_token(chunks.B @ grouped.transpose(-1, -2), heads)
    left = chunks.out * (chunks.x * pulled).sum(-1)
    dtotal = dtotal + chunks.into * (dy * from_state(chunks, before)).sum(-1) - left
    dtotal[:, :, -1] += left.sum(2) + chunks.through * (dstates * before).sum((-1, -2))
    return dx + pulled * chunks.out[..., None], dtotal


def _meets(values: Tensor, matrices: Tensor, chunks: Chunks) -> Tensor:
    """Values `(batch, chunks, Q, heads, head_dim)` times matrices `(batch, chunks, heads, head_dim, state_size)`, added
    up over a group's heads: `(batch, chunks, groups, Q, state_size)`."""
    groups = chunks.B.shape[2]
    grouped = matrices.view(*matrices.shape[:2], groups, -1, matrices.shape[-1])
    return by_group(values, groups) @ grouped
