"""Bytes and FLOPs of an Adam step with normalisation; see `reference`."""

from nlrl.kernels.costs import Cost


def forward(size: int, rows: int, columns: int, axis: int = 1, rounded: int = 0) -> Cost:
    """Reads w, g, m and v, writes w, m and v, and a copy in 2 bytes if `rounded`."""
    return Cost((7 * size + 2 * rounded) * rows * columns, 16 * rows * columns)
