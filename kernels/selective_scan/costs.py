"""Bytes and FLOPs of the scan of Mamba-1; see `reference`.

A state takes seven operations a token: delta A, its exponential, the product with h, the product with B, a sum, and a
product and a sum for y. Backwards h is computed again without y (5) and g, dA, ddelta, dx, dB and dC take 14 more.
"""

from nlrl.kernels.costs import Cost


def forward(size: int, batch: int, time: int, channels: int, states: int) -> Cost:
    """Reads x, delta, B and C, writes y and, in float32, the state; one token also reads the state."""
    values, tokens = batch * time * channels, batch * time
    state = 4 * batch * channels * states * (2 if time == 1 else 1)
    return Cost(size * (3 * values + 2 * tokens * states) + state, (7 * states + 3) * values)


def backward(size: int, batch: int, time: int, channels: int, states: int) -> Cost:
    """Reads x, delta, dy, B and C, writes dx, ddelta, dB and dC."""
    values, tokens = batch * time * channels, batch * time
    return Cost(size * (5 * values + 4 * tokens * states), (19 * states + 6) * values)
