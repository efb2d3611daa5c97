"""Bytes and FLOPs of the one-bit linear map; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(size: int, rows: int, inputs: int, outputs: int) -> Cost:
    """Reads x, signs, scales and shifts, writes y."""
    return Cost(
        size * (rows * (inputs + outputs) + 2 * inputs) + outputs * -(-inputs // 8), 2 * rows * inputs * outputs
    )
