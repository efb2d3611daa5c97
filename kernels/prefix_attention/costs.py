"""Bytes and FLOPs of attention behind a prefix; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(
    size: int, batch: int, time: int, heads: int, kv_heads: int, key_dim: int, value_dim: int, prefix: int, window: int
) -> Cost:
    """Reads queries, keys and values, writes y: for inference, which keeps nothing. window 0: all keys."""
    numbers = batch * time * (heads + kv_heads) * (key_dim + value_dim)
    pairs = _pairs(batch, time, prefix, window) * heads
    return Cost(size * (numbers + prefix * kv_heads * (key_dim + value_dim)), pairs * (2 * (key_dim + value_dim) + 1))


def backward(
    size: int, batch: int, time: int, heads: int, kv_heads: int, key_dim: int, value_dim: int, prefix: int, window: int
) -> Cost:
    """Reads queries, keys, values, y and dy, writes three gradients and the prefix's; every product once."""
    numbers = batch * time * (2 * heads * (key_dim + value_dim) + 2 * kv_heads * (key_dim + value_dim))
    pairs = _pairs(batch, time, prefix, window) * heads
    own = 2 * prefix * kv_heads * (key_dim + value_dim)
    return Cost(size * (numbers + own), pairs * (4 * key_dim + 6 * value_dim + 1))


def _pairs(batch: int, time: int, prefix: int, window: int) -> int:
    """Of a query and a key that it sees; a window of W lets W tokens before a token be seen, and itself."""
    near = min(window or time, time - 1)
    return batch * (time * prefix + time * (near + 1) - near * (near + 1) // 2)
