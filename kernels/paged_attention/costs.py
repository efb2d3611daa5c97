"""Bytes and FLOPs of attention of one token a row; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(
    size: int, rows: int, context: int, heads: int, kv_heads: int, v_heads: int, key_dim: int, value_dim: int,
    prefix: int = 0,
) -> Cost:  # fmt: skip
    """Reads the keys and values of every token once, those of a prefix once for all rows; the rest is little beside
    them."""
    numbers = (rows * context + prefix) * (kv_heads * key_dim + v_heads * value_dim)
    return Cost(size * numbers, 2 * rows * (context + prefix) * heads * (key_dim + value_dim))
