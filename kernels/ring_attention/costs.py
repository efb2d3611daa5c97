"""Bytes and FLOPs of attention of one token a row over a ring; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(
    size: int, rows: int, slots: int, heads: int, kv_heads: int, key_dim: int, value_dim: int, prefix: int = 0
) -> Cost:
    """Reads the keys and values of every slot once, those of the prefix once for all rows."""
    numbers = (rows * (slots + 1) + prefix) * kv_heads * (key_dim + value_dim)
    return Cost(size * numbers, 2 * rows * (slots + 1 + prefix) * heads * (key_dim + value_dim))
