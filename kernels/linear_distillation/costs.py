"""Bytes and FLOPs of distillation through vocabularies' matrices; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(size: int, tokens: int, width: int, teacher_width: int, vocab: int) -> Cost:
    """Reads hidden states and both matrices."""
    widths = width + teacher_width
    return Cost(size * widths * (tokens + vocab), 2 * tokens * widths * vocab + 6 * tokens * vocab)


def backward(size: int, tokens: int, width: int, teacher_width: int, vocab: int) -> Cost:
    """Two products of the student's more; writes both gradients."""
    return Cost(2 * size * width * (tokens + vocab), 4 * tokens * width * vocab + 3 * tokens * vocab)
