"""The named layouts, and layouts given as text: rows of `#` (wall), `.` (free) and at most one `G` (the goal).

`double_t`, `umaze`, `medium` and `large` are the mazes of LMRL-Gym's `llm_rl_scripts/maze/env/mazes.py`, which NLRL's
`maze/env/mazes.py` repeats. Both public set-ups give goals for the first two only. `medium` and `large` are the mazes
`maze2d-medium` and `maze2d-large` of D4RL (`d4rl/pointmaze/maze_model.py`) turned by a quarter, so their goals here are
the cells that D4RL's goals land on: (6, 6) becomes (1, 6), (7, 9) becomes (2, 7).
"""

from __future__ import annotations

from typing import NamedTuple

from nlrl.envs.maze.state import Cell

MAX_SIDE = 40
"""Rows and columns that a layout may have."""


class Layout(NamedTuple):
    """Walls, and the goal where it is known. Outside the map there is wall."""

    rows: tuple[str, ...]
    """Equally long rows of `#` and `.`."""
    goal: Cell | None

    def is_free(self, cell: Cell) -> bool:
        row, column = cell
        return 0 <= row < len(self.rows) and 0 <= column < len(self.rows[0]) and self.rows[row][column] == "."

    def to_text(self) -> str:
        """One line, rows separated by `/`: `read_layout` gives the layout back."""
        rows = [list(row) for row in self.rows]
        if self.goal is not None:
            rows[self.goal[0]][self.goal[1]] = "G"
        return "/".join("".join(row) for row in rows)


def looks_like_layout(text: str) -> bool:
    """Whether `text` is meant as a map, not as a name."""
    return any(symbol in text for symbol in "#./\n")


def read_layout(text: str) -> Layout:
    """Reads rows separated by `/` or newlines.

    Raises:
        ValueError: rows of different lengths, too many or too long ones, another symbol, or two goals.
    """
    rows = text.strip("\n").replace("\n", "/").split("/")
    if len(rows) > MAX_SIDE or not 1 <= len(rows[0]) <= MAX_SIDE:
        raise ValueError(f"a layout has 1 to {MAX_SIDE} rows and columns; this one has {len(rows)} and {len(rows[0])}")
    for number, row in enumerate(rows):
        _require_row(number, row, len(rows[0]))
    goals = [(r, c) for r, row in enumerate(rows) for c, symbol in enumerate(row) if symbol == "G"]
    if len(goals) > 1:
        raise ValueError(f"a layout has at most one goal 'G', not {len(goals)}: {', '.join(map(str, goals))}")
    return Layout(tuple(row.replace("G", ".") for row in rows), goals[0] if goals else None)


def _require_row(number: int, row: str, width: int) -> None:
    if len(row) != width:
        raise ValueError(f"row {number} of the layout has {len(row)} cells, the rows above it have {width}")
    for column, symbol in enumerate(row):
        if symbol not in "#.G":
            raise ValueError(f"row {number}, column {column} of the layout: expected '#', '.' or 'G', not {symbol!r}")


_DOUBLE_T = """
#############
#.....#.....#
###.#####.###
###.#####.###
###.#####.###
###.......###
######.######
######.######
######G######
#############
"""
_UMAZE = """
#####
#...#
#.#.#
#.#G#
#####
"""
_MEDIUM = """
########
#..#..G#
#..#.#.#
##....##
###.#..#
#....#.#
#..#...#
########
"""
_LARGE = """
#########
#.....#.#
#.#.#.#G#
#...#...#
#.###.###
#.......#
###.###.#
#...#...#
#.#.#####
#.#.#...#
#.....#.#
#########
"""
LAYOUTS: dict[str, Layout] = {
    "double_t": read_layout(_DOUBLE_T),
    "large": read_layout(_LARGE),
    "medium": read_layout(_MEDIUM),
    "umaze": read_layout(_UMAZE),
}
