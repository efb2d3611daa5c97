"""Words that games of walking on a grid share: places, ways and directions."""

from __future__ import annotations

from collections.abc import Sequence

Cell = tuple[int, int]
"""(row, column) as the game's texts count them."""


def place(cell: Cell) -> str:
    """`row 2, column 4`."""
    return f"row {cell[0]}, column {cell[1]}"


def way(here: Cell, there: Cell) -> str:
    """How far `there` lies, whatever is between: `2 down and 1 right`, `3 up`, `here`."""
    parts = _parts(there[0] - here[0], ("up", "down")) + _parts(there[1] - here[1], ("left", "right"))
    return " and ".join(parts) or "here"


def _parts(distance: int, names: tuple[str, str]) -> list[str]:
    return [f"{abs(distance)} {names[distance > 0]}"] if distance else []


def listed(items: Sequence[str], last: str = "and", nothing: str = "none") -> str:
    """`a, b and c`."""
    if len(items) < 2:
        return "".join(items) or nothing
    return f"{', '.join(items[:-1])} {last} {items[-1]}"
