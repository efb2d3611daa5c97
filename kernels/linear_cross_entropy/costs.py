"""Bytes and FLOPs of a vocabulary's matrix with cross-entropy; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(size: int, tokens: int, width: int, vocab: int) -> Cost:
    """Reads hidden states and the matrix."""
    return Cost(size * width * (tokens + vocab), 2 * tokens * width * vocab + 3 * tokens * vocab)


def backward(size: int, tokens: int, width: int, vocab: int) -> Cost:
    """Two products more; writes both gradients."""
    return Cost(2 * size * width * (tokens + vocab), 4 * tokens * width * vocab + 3 * tokens * vocab)
