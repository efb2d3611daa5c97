"""Bytes and FLOPs of the gated activation; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(size: int, tokens: int, channels: int) -> Cost:
    """Reads values and gates, writes y."""
    return Cost(3 * size * tokens * channels, 5 * tokens * channels)


def backward(size: int, tokens: int, channels: int) -> Cost:
    """Reads values, gates and dy, writes two gradients."""
    return Cost(5 * size * tokens * channels, 11 * tokens * channels)
