"""Bytes and FLOPs of turn, norm and scale; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(size: int, batch: int, time: int, heads: int, head_dim: int) -> Cost:
    """Reads x, cosines and sines (float32, one set), writes y."""
    numbers = batch * time * heads * head_dim
    return Cost(2 * size * numbers + 4 * time * head_dim, 7 * numbers)


def backward(size: int, batch: int, time: int, heads: int, head_dim: int) -> Cost:
    """Reads x, dy, cosines and sines, writes dx."""
    numbers = batch * time * heads * head_dim
    return Cost(3 * size * numbers + 4 * time * head_dim, 16 * numbers)
