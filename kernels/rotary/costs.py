"""Bytes and FLOPs of rotary embedding; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(size: int, batch: int, time: int, heads: int, head_dim: int) -> Cost:
    """Reads x and, in float32 and once for all rows, cos and sin; writes y."""
    values = batch * time * heads * head_dim
    return Cost(2 * size * values + 4 * time * head_dim, 3 * values)


backward = forward
"""A turn by the opposite angle."""
