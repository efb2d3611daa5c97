"""The state of a walk, and the four moves."""

from __future__ import annotations

from typing import NamedTuple

Cell = tuple[int, int]
"""(row, column), counted from 0 at the top left."""

DIRECTIONS: tuple[str, ...] = ("left", "right", "up", "down")
"""Action i moves this way."""
DELTAS: tuple[Cell, ...] = ((0, -1), (0, 1), (-1, 0), (1, 0))
"""(rows, columns) that action i moves by."""
ACTION_TEXTS: tuple[str, ...] = tuple(f"move {direction}" for direction in DIRECTIONS)
NO_MOVE = -1
"""In a history: the reply named no move."""


class Seen(NamedTuple):
    """One item of a history: what the walker saw and what it then did."""

    walls: int
    """Bit i is set where action i bumps into a wall."""
    action: int
    """An action, or `NO_MOVE`."""


class MazeState(NamedTuple):
    """Where the walker stands, and its last steps, oldest first, as far as the game keeps them."""

    row: int
    column: int
    history: tuple[Seen, ...] = ()

    @property
    def cell(self) -> Cell:
        return self.row, self.column


def walls_text(walls: int) -> str:
    """`left, up`, or `none`."""
    return ", ".join(name for bit, name in enumerate(DIRECTIONS) if walls >> bit & 1) or "none"
