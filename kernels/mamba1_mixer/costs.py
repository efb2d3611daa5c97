"""Bytes and FLOPs of a Mamba-1 mixer between its matrices; see `reference`.

Two tensors between its parts are counted too, u and the low-rank product W d, each written once and read twice, as the
maps between them need all channels of a token.
"""

from nlrl.kernels.costs import Cost


def forward(size: int, batch: int, time: int, channels: int, states: int, rank: int, taps: int) -> Cost:
    """Reads x and gate, writes y and the state, and u and W d in between."""
    values, tokens, outputs = batch * time * channels, batch * time, rank + 2 * states
    numbers = 3 * values + 3 * values + 2 * values + 3 * tokens * outputs + (outputs + rank) * channels
    flops = (7 * states + 2 * taps + 20 + 2 * (outputs + rank)) * values
    return Cost(size * numbers + 4 * batch * channels * states, flops)


def backward(size: int, batch: int, time: int, channels: int, states: int, rank: int, taps: int) -> Cost:
    """Reads x, gate, dy, u and W d, writes gradients of each; every product has two in its gradient."""
    values, tokens, outputs = batch * time * channels, batch * time, rank + 2 * states
    numbers = 5 * values + 2 * values + 4 * values + 6 * tokens * outputs + 2 * (outputs + rank) * channels
    flops = (19 * states + 6 * taps + 40 + 4 * (outputs + rank)) * values
    return Cost(size * numbers, flops)
