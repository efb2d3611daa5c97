"""Bytes and FLOPs of one token of a Mamba-2 mixer; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(size: int, rows: int, heads: int, head_dim: int, groups: int, states: int, taps: int) -> Cost:
    """Reads and writes state (float32) and window, reads the projection, writes y."""
    inner, state = heads * head_dim, heads * head_dim * states
    conv = inner + 2 * groups * states
    numbers = 2 * (taps - 1) * conv + (inner + conv + heads) + inner
    return Cost(rows * (8 * state + size * numbers), rows * (5 * state + 2 * taps * conv + 12 * inner))
