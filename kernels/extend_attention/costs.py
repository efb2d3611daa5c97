"""Bytes and FLOPs of attention of several new tokens a row over older text; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(
    size: int, batch: int, time: int, old: int, heads: int, kv_heads: int, v_heads: int, key_dim: int, value_dim: int,
    prefix: int = 0, reach: int = 0, slots: int = 0,
) -> Cost:  # fmt: skip
    """Reads queries and writes y, reads the keys and values of every row once, those of a prefix once for all rows.

    Args: old: tokens before the new ones. reach: how far before itself a token sees; 0: everything. slots: of a ring;
        0: there are pages.
    """
    held = min(old, slots or old, reach or old)
    numbers = batch * time * heads * (key_dim + value_dim)
    numbers += (batch * (held + time) + prefix) * (kv_heads * key_dim + v_heads * value_dim)
    pairs = sum(prefix + 1 + min(t, reach or t) + _older(t, held, reach) for t in range(time))
    return Cost(size * numbers, batch * pairs * heads * (2 * (key_dim + value_dim) + 1))


def _older(token: int, held: int, reach: int) -> int:
    """Of the older tokens those that the new token at this place sees."""
    return min(held, max(0, reach - token)) if reach else held
