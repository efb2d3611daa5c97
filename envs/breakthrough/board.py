"""States of Breakthrough, and what follows from the size of the board alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from nlrl.envs.breakthrough import windows

BLACK, WHITE = 0, 1
NAMES = ("black", "white")
SIZES = range(3, 9)
"""Allowed numbers of rows and of columns."""
LETTERS = "abcdefgh"

Move = tuple[int, int, int]
"""As bits: the cell moved from, the cell moved to, and that again if an enemy would stop the move (straight ahead)."""


class BreakthroughState(NamedTuple):
    """Bitboards of both players, and the player to move; after the end, the loser."""

    black: int
    white: int
    player: int


class Board:
    """Masks, names, moves and texts for one size. Use `board(rows, columns)`, which keeps one for each size."""

    def __init__(self, rows: int, columns: int):
        self.rows, self.columns, self.cells = rows, columns, rows * columns
        self.full = (1 << self.cells) - 1
        row = (1 << columns) - 1
        self.goals = (row << self.cells - columns, row)
        """Each player's far row, as bits."""
        self.letters = " ".join(LETTERS[:columns])
        self.cell_names = tuple(f"{LETTERS[c]}{rows - r}" for r in range(rows) for c in range(columns))
        self.moves = (dict(self._moves(BLACK)), dict(self._moves(WHITE)))
        """Player -> action -> its move, for all actions that stay on the board."""
        self.move_texts = (dict(self._move_texts(BLACK)), dict(self._move_texts(WHITE)))
        """Player -> action -> the target as a bit, and the move's text without and with a capture there."""
        self.actions = tuple({text: a for a, (_, *both) in texts.items() for text in both} for texts in self.move_texts)
        """Player -> text -> action."""
        self.action_windows = (windows.action_windows(self, BLACK), windows.action_windows(self, WHITE))
        self.name_windows = (windows.name_windows(self, BLACK), windows.name_windows(self, WHITE))
        self.text_windows = windows.text_windows(self)

    def _moves(self, player: int) -> Iterator[tuple[int, Move]]:
        for action in range(3 * self.cells):
            cell, direction = divmod(action, 3)
            row, column = divmod(cell, self.columns)
            row, column = row + (1, -1)[player], column + direction - 1
            if 0 <= row < self.rows and 0 <= column < self.columns:
                target = 1 << row * self.columns + column
                yield action, (1 << cell, target, target if direction == 1 else 0)

    def _move_texts(self, player: int) -> Iterator[tuple[int, tuple[int, str, str]]]:
        for action, (source, target, _) in self.moves[player].items():
            text = "".join(self.names(source) + self.names(target))
            yield action, (target, text, text + "*")

    def names(self, bits: int) -> list[str]:
        """The cells' names, from the top left to the bottom right."""
        return [name for cell, name in enumerate(self.cell_names) if bits >> cell & 1]

    def mirror(self, bits: int) -> int:
        """The left-right mirror image."""
        digits = f"{bits:0{self.cells}b}"
        rows = [digits[start : start + self.columns][::-1] for start in range(0, self.cells, self.columns)]
        return int("".join(rows), 2)

    def winner(self, black: int, white: int) -> int | None:
        """Who has reached the far row or taken the last enemy pawn."""
        if black & self.goals[BLACK] or not white:
            return BLACK
        return WHITE if white & self.goals[WHITE] or not black else None

    def problem(self, black: int, white: int, most: int) -> str | None:
        """Why no game with `most` pawns a side shows these bitboards, or None. Others need not be reachable either."""
        if (black | white) & ~self.full:
            return f"there are pawns outside {self.rows} rows and {self.columns} columns"
        if black & white:
            return f"both sides have a pawn on {self.names(black & white)[0]}"
        if not black | white:
            return "neither side has a pawn"
        for name, pawns in zip(NAMES, (black, white), strict=True):
            if pawns.bit_count() > most:
                return f"{name} has {pawns.bit_count()} pawns, more than the {most} it starts with"
        return self._finish_problem(self.names(black & self.goals[BLACK]), self.names(white & self.goals[WHITE]))

    def _finish_problem(self, *arrived: list[str]) -> str | None:
        """`arrived`: the pawns on the far row of each side."""
        if all(arrived):
            return f"both sides have won: black is on {arrived[BLACK][0]}, white on {arrived[WHITE][0]}"
        for name, cells in zip(NAMES, arrived, strict=True):
            if len(cells) > 1:
                return f"{name} is on {' and '.join(cells)}, but the first pawn there ends the game"
        return None


@cache
def board(rows: int, columns: int) -> Board:
    """The tables for this size; one for each in a process."""
    return Board(rows, columns)
