"""Bytes and FLOPs of RMSNorm; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(size: int, rows: int, width: int, added: int = 0) -> Cost:
    """Reads x (and the residual), writes y (and their sum)."""
    return Cost((4 if added else 2) * size * rows * width, (5 if added else 4) * rows * width)


def backward(size: int, rows: int, width: int, added: int = 0) -> Cost:
    """Reads the sum and dy (and its own gradient), writes one gradient, which both have."""
    return Cost((4 if added else 3) * size * rows * width, (9 if added else 8) * rows * width)
