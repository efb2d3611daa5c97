"""Bytes and FLOPs of drawing a token; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(size: int, rows: int, vocabulary: int, masked: int = 0) -> Cost:
    """Reads every logit, and a bit for it if `masked`. A logit takes two exponentials, two logarithms (its noise), two
    products and two sums; integers of the hash are not counted."""
    return Cost(rows * vocabulary * (size + masked / 8), 8 * rows * vocabulary)
