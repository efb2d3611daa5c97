"""Bytes and FLOPs of the mean of two normalised tensors; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(size: int, rows: int, width: int) -> Cost:
    """Reads both, writes one."""
    return Cost(3 * size * rows * width, 9 * rows * width)


def backward(size: int, rows: int, width: int) -> Cost:
    """Reads both and dy, writes both gradients."""
    return Cost(5 * size * rows * width, 16 * rows * width)
