"""Bytes and FLOPs of the residual step of nGPT; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(size: int, tokens: int, width: int) -> Cost:
    """Reads h and x, writes y."""
    return Cost(3 * size * tokens * width, 9 * tokens * width)


def backward(size: int, tokens: int, width: int) -> Cost:
    """Reads h, x, y and dy, writes dh and dx."""
    return Cost(6 * size * tokens * width, 20 * tokens * width)
