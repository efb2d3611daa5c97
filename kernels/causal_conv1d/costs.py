"""Bytes and FLOPs of the depthwise causal convolution; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(size: int, batch: int, time: int, channels: int, taps: int) -> Cost:
    """Reads x and positions, writes y and the new window; one token also reads the old window."""
    values, windows = batch * time * channels, 2 if time == 1 else 1
    window = windows * batch * (taps - 1) * channels
    return Cost(size * (2 * values + window) + 8 * batch * time, 2 * taps * values)


def backward(size: int, batch: int, time: int, channels: int, taps: int) -> Cost:
    """Reads x, dy and positions, writes dx."""
    values = batch * time * channels
    return Cost(3 * size * values + 8 * batch * time, 4 * taps * values)
