"""Bytes and FLOPs of a Mamba-2 mixer between its matrices; see `reference`.

Tensors between its parts are counted too: the convolved x, B and C are written and read once, and so is the
recurrence's output, as the norm needs all heads of a token.
"""

from nlrl.kernels.costs import Cost
from nlrl.kernels.ssd import costs as ssd


def forward(size: int, batch: int, time: int, heads: int, head_dim: int, groups: int, states: int, taps: int) -> Cost:
    """Reads the projection, writes y and the state; what is in between twice."""
    tokens, inner = batch * time, heads * head_dim
    conv = inner + 2 * groups * states
    numbers = tokens * (inner + conv + heads + 2 * conv + 2 * inner + inner)
    flops = ssd.forward(size, batch, time, heads, head_dim, groups, states).flops
    return Cost(size * numbers + 4 * batch * inner * states, flops + tokens * (2 * taps * conv + 16 * inner))


def backward(size: int, batch: int, time: int, heads: int, head_dim: int, groups: int, states: int, taps: int) -> Cost:
    """Reads the projection, dy, and what is in between, writes the projection's gradient, and theirs twice."""
    tokens, inner = batch * time, heads * head_dim
    conv = inner + 2 * groups * states
    numbers = tokens * (2 * (inner + conv + heads) + inner + 3 * conv + 3 * inner)
    flops = ssd.backward(size, batch, time, heads, head_dim, groups, states).flops
    return Cost(size * numbers, flops + tokens * (6 * taps * conv + 32 * inner))
