"""Bytes and FLOPs of the recurrence of Mamba-2; see `reference`."""

from nlrl.kernels.costs import Cost
from nlrl.kernels.ssd.reference import CHUNK


def forward(size: int, batch: int, time: int, heads: int, head_dim: int, groups: int, states: int) -> Cost:
    """Reads x, dt (float32), B and C, writes y and, in float32, the state; one token also reads the state."""
    tokens, state = batch * time, batch * heads * head_dim * states
    numbers = 2 * tokens * heads * head_dim + 2 * tokens * groups * states
    bytes_ = size * numbers + 4 * tokens * heads + 4 * state * (2 if time == 1 else 1)
    if time == 1:
        return Cost(bytes_, 5 * state)
    products = 2 * CHUNK * (head_dim + states * groups / heads) + 4 * head_dim * states
    return Cost(bytes_, tokens * heads * products)


def backward(size: int, batch: int, time: int, heads: int, head_dim: int, groups: int, states: int) -> Cost:
    """Reads x, dy, dt, B and C, writes dx, ddt, dB and dC; each product has two in its gradient."""
    tokens = batch * time
    numbers = 3 * tokens * heads * head_dim + 4 * tokens * groups * states
    flops = 2 * forward(size, batch, time, heads, head_dim, groups, states).flops
    return Cost(size * numbers + 8 * tokens * heads, flops)
