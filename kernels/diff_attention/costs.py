"""Bytes and FLOPs of differential attention; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(size: int, batch: int, time: int, heads: int, kv_heads: int, width: int) -> Cost:
    """Causal. Reads queries, keys and values, writes y: for inference, which keeps nothing."""
    tokens, pairs = batch * time, batch * time * (time + 1) // 2
    numbers = tokens * width * (4 * heads + 4 * kv_heads)
    return Cost(size * numbers, pairs * heads * (12 * width + 2))


def backward(size: int, batch: int, time: int, heads: int, kv_heads: int, width: int) -> Cost:
    """Causal. Reads queries, keys, values, O, O2 and dy, writes three gradients; every product once."""
    tokens, pairs = batch * time, batch * time * (time + 1) // 2
    numbers = tokens * width * (10 * heads + 8 * kv_heads)
    return Cost(size * numbers, pairs * heads * (20 * width + 2))
