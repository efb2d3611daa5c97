"""Bytes and FLOPs of drawing a token from hidden states; see `reference`."""

from nlrl.kernels.costs import Cost
from nlrl.kernels.sample.costs import forward as drawing


def forward(size: int, rows: int, width: int, vocabulary: int, masked: int = 0, scaled: int = 0) -> Cost:
    """Reads hidden states and the vocabulary's matrix, and a bit for every logit if `masked`; arithmetic of the product
    and of `sample`."""
    read = size * width * (rows + vocabulary) + rows * vocabulary * masked / 8 + 4 * vocabulary * scaled
    return Cost(read, 2 * rows * width * vocabulary + drawing(size, rows, vocabulary).flops)
