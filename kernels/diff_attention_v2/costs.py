"""Bytes and FLOPs of differential attention, version 2; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(size: int, batch: int, time: int, heads: int, kv_heads: int, width: int) -> Cost:
    """Causal. Reads queries, keys, values and gates, writes y: for inference, which keeps nothing."""
    tokens, pairs = batch * time, batch * time * (time + 1) // 2
    return Cost(size * tokens * (width * (3 * heads + 2 * kv_heads) + heads), pairs * heads * (8 * width + 2))


def backward(size: int, batch: int, time: int, heads: int, kv_heads: int, width: int) -> Cost:
    """Causal. Reads queries, keys, values, y, O2 and dy, writes three gradients; every product once."""
    tokens, pairs = batch * time, batch * time * (time + 1) // 2
    return Cost(size * tokens * width * (7 * heads + 4 * kv_heads), pairs * heads * (16 * width + 2))
