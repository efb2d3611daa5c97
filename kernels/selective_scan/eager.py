"""The selective scan in PyTorch calls over many tokens at once; formulas in `reference`.

1. Time is cut into segments whose states, `(batch, tokens, channels, N)`, fit a cache. The backward keeps the states
   between segments only and makes those within one again, last segment first.
2. Within a segment a recurrence is one fused multiply-add a token where a token's states are many. Where they are few,
   the segment is cut into lanes that advance side by side, each from zero, and what came before a lane is added at the
   end, times the lane's product of decays. No power or logarithm is taken, so nothing overflows.
3. Padding has a step size of zero: it neither decays nor adds. At position 0 the decay that carries a state over is
   zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from nlrl.kernels.selective_scan.reference import wide_dtype

SEGMENT_VALUES = {"cpu": 1 << 17}
"""States of a segment by device type, elements."""
SEGMENT_VALUES_ELSEWHERE = 1 << 25
SHORTEST_SEGMENT, LONGEST_SEGMENT = 4, 512
LANE = 16
"""Tokens of a lane."""
MOST_VALUES_IN_LANES = 1 << 13
"""States of a token, over all rows, that are few: a call costs more than its arithmetic."""


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    position_ids: Tensor,
    state: Tensor | None = None,
    initial: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.selective_scan`."""
    wide = wide_dtype(x, delta, A)
    values = x.to(wide)
    delta = delta.to(wide).masked_fill((position_ids < 0)[..., None], 0)
    A, B, C = A.to(wide), B.to(wide), C.to(wide)
    state = values.new_zeros((x.shape[0], *A.shape)) if state is None else state.to(wide)
    initial = None if initial is None else initial.to(wide)
    run = _one_token if x.shape[1] == 1 else _Scan.apply
    y, after = run(values, delta, A, B, C, position_ids == 0, state, initial)  # pyright: ignore
    return torch.addcmul(y, values, D.to(wide)).to(x.dtype), after


def compiled(x, delta, A, B, C, D, position_ids, state=None, initial=None) -> tuple[Tensor, Tensor]:
    """See `reference.selective_scan`. The same by doubling: after k rounds a token's state is the sum over its last
    2**k tokens. More arithmetic, but only log(time) operations, and every one of them a compiler can read."""
    wide = wide_dtype(x, delta, A)
    values, delta = x.to(wide), delta.to(wide).masked_fill((position_ids < 0)[..., None], 0)
    state = values.new_zeros((x.shape[0], *A.shape)) if state is None else state.to(wide)
    if not x.shape[1]:
        return x, state
    begins = position_ids == 0
    full = (delta[..., None] * A.to(wide)).exp()
    decay = full.masked_fill(begins[..., None, None], 0)
    h = (delta * values)[..., None] * B.to(wide)[:, :, None]
    if initial is not None:
        h = h + (full - decay) * initial.to(wide)
    h = torch.cat((h[:, :1] + decay[:, :1] * state[:, None], h[:, 1:]), 1)
    shift = 1
    while shift < x.shape[1]:
        h = torch.cat((h[:, :shift], h[:, shift:] + decay[:, shift:] * h[:, :-shift]), 1)
        decay = torch.cat((decay[:, :shift], decay[:, shift:] * decay[:, :-shift]), 1)
        shift *= 2
    y = (h * C.to(wide)[:, :, None]).sum(-1) + D.to(wide) * values
    return y.to(x.dtype), h[:, -1]


def _one_token(x, delta, A, B, C, begins, state, initial) -> tuple[Tensor, Tensor]:
    """Decoding: `(batch, 1, channels)` in and out."""
    begin = state.new_zeros(()) if initial is None else initial
    before = torch.where(begins[..., None], begin, state)
    state = (delta[:, 0, :, None] * A).exp() * before + (delta * x)[:, 0, :, None] * B
    return (state @ C.mT).mT, state


class _Scan(torch.autograd.Function):
    """Without the skip D. begins: bool `(batch, time)`; delta is zero at padding."""

    @staticmethod
    def forward(ctx, x, delta, A, B, C, begins, state, initial) -> tuple[Tensor, Tensor]:
        y, states = torch.empty_like(x), [state]
        for cut in _segments(x, A):
            h = _states(_Segment(cut, x, delta, A, B, begins, initial), states[-1])
            y[:, cut] = (h @ C[:, cut, :, None])[..., 0]
            states.append(h[:, -1].clone())
        ctx.save_for_backward(x, delta, A, B, C, begins, initial, *states[:-1])
        return y, states[-1].clone() if len(states) == 1 else states[-1]

    @staticmethod
    def backward(ctx, dy, dstate) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, delta, A, B, C, begins, initial, *states = ctx.saved_tensors
        dx, ddelta, dB, dC = (torch.empty_like(tensor) for tensor in (x, delta, B, C))
        dA, dinitial = torch.zeros_like(A), None if initial is None else torch.zeros_like(initial)
        carry = dstate.to(x.dtype)
        for cut, before in reversed(list(zip(_segments(x, A), states, strict=False))):
            segment = _Segment(cut, x, delta, A, B, begins, initial)
            h = _states(segment, before)
            dC[:, cut] = (dy[:, cut, None] @ h)[:, :, 0]
            g, carry = _gradients(segment, dy[:, cut], C[:, cut], carry)
            if dinitial is not None:
                dinitial += segment.at_begins(g)
            met = segment.met(before, h)
            dx[:, cut], ddelta[:, cut], dB[:, cut], part = segment.spread(g, met)
            dA += part
        return dx, ddelta, dA, dB, dC, None, carry, dinitial


class _Segment:
    """Some tokens of a scan."""

    def __init__(self, cut: slice, x, delta, A, B, begins, initial):
        self.x, self.delta, self.B = x[:, cut], delta[:, cut], B[:, cut]
        self.begins = begins[:, cut, None, None]
        self.A, self.initial = A, initial
        self.full = torch.mul(self.delta[..., None], A).exp_()
        """exp(delta * A), `(batch, tokens, channels, N)`."""

    def decay(self) -> Tensor:
        """What is left of the state before: nothing where a document begins. A new tensor."""
        return self.full.masked_fill(self.begins, 0)

    def added(self, decay: Tensor) -> Tensor:
        """What each token adds to the state."""
        h = (self.delta * self.x)[..., None] * self.B[:, :, None]
        return h if self.initial is None else h.addcmul_(self.full - decay, self.initial)

    def met(self, before: Tensor, h: Tensor) -> Tensor:
        """The state that each token's exp(delta * A) met. A new tensor."""
        met = torch.cat((before[:, None], h[:, :-1]), 1)
        return met.masked_fill_(self.begins, 0) if self.initial is None else torch.where(self.begins, self.initial, met)

    def at_begins(self, g: Tensor) -> Tensor:
        """Gradient of `initial`, `(channels, N)`."""
        return (g * self.full).masked_fill_(~self.begins, 0).sum((0, 1))

    def spread(self, g: Tensor, met: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of x, delta, B and A from those of the states; overwrites met."""
        dproduct = (g @ self.B[..., None])[..., 0]
        dB = ((self.delta * self.x)[:, :, None] @ g)[:, :, 0]
        dexponent = met.mul_(g).mul_(self.full)
        ddelta = (dexponent * self.A).sum(-1).addcmul_(dproduct, self.x)
        return dproduct * self.delta, ddelta, dB, dexponent.mul_(self.delta[..., None]).sum((0, 1))


def _segments(x: Tensor, A: Tensor) -> Iterator[slice]:
    """Runs of tokens whose states are about `SEGMENT_VALUES`."""
    budget = SEGMENT_VALUES.get(x.device.type, SEGMENT_VALUES_ELSEWHERE)
    size = max(SHORTEST_SEGMENT, min(LONGEST_SEGMENT, budget // max(1, x.shape[0] * A.numel())))
    for start in range(0, x.shape[1], size):
        yield slice(start, min(start + size, x.shape[1]))


def _states(segment: _Segment, before: Tensor) -> Tensor:
    """The state after each token."""
    decay = segment.decay()
    h = segment.added(decay)
    _recur(decay, h, before, backwards=False)
    return h


def _gradients(segment: _Segment, dy: Tensor, C: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
    """dL/dh of each token, and of the state before the segment. carry: what the last state gets from later tokens."""
    g, decay = dy[..., None] * C[:, :, None], segment.decay()
    later = torch.cat((decay[:, 1:], torch.ones_like(decay[:, :1])), 1)
    _recur(later, g, carry, backwards=True)
    return g, decay[:, 0] * g[:, 0]


def _recur(decay: Tensor, h: Tensor, before: Tensor, backwards: bool) -> None:
    """In place, h[t] += decay[t] * (h of the token before t), which is `before` for the first; overwrites decay.

    Args:
        decay, h: `(batch, tokens, channels, N)`.
        backwards: "before" means "at t + 1".
    """
    time = h.shape[1]
    laned = time - time % LANE if time >= 2 * LANE and h[:, 0].numel() <= MOST_VALUES_IN_LANES else 0
    if laned:
        part = slice(time - laned, time) if backwards else slice(0, laned)
        before = _recur_in_lanes(decay[:, part], h[:, part], before, backwards)
    for t in reversed(range(time - laned)) if backwards else range(laned, time):
        before = h[:, t].addcmul_(decay[:, t], before)


def _recur_in_lanes(decay: Tensor, h: Tensor, before: Tensor, backwards: bool) -> Tensor:
    """`_recur` for whole lanes; returns the last state."""
    h, decay = h.unflatten(1, (-1, LANE)), decay.unflatten(1, (-1, LANE))
    step = -1 if backwards else 1
    places = range(LANE)[::step]
    for previous, t in pairwise(places):
        h[:, :, t].addcmul_(decay[:, :, t], h[:, :, previous])
        decay[:, :, t].mul_(decay[:, :, previous])  # now since the lane's beginning
    end, starts = places[-1], torch.empty_like(h[:, :, 0])
    for lane in range(h.shape[1])[::step]:
        starts[:, lane] = before
        before = torch.addcmul(h[:, lane, end], decay[:, lane, end], before)
    h.addcmul_(decay, starts[:, :, None])
    return before
