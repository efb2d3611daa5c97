"""Bytes and FLOPs of one token of a Mamba-1 mixer; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(size: int, rows: int, channels: int, states: int, rank: int, taps: int) -> Cost:
    """Reads and writes state (float32) and window, reads x, gate and once the weights, writes y."""
    state, outputs = channels * states, rank + 2 * states
    numbers = rows * (2 * (taps - 1) + 3) * channels + (outputs + rank + taps + 2) * channels
    flops = 7 * state + 2 * (outputs + rank + taps) * channels + 12 * channels
    return Cost(8 * rows * state + 4 * state + size * numbers, rows * flops)
