"""Tic-Tac-Toe: rules as tables over nine-bit boards.

1. Cell i (0 to 8, row by row) is bit i of a player's bitboard; people call it i + 1. O is player 0 and moves first.
2. Whoever completes a line of three wins (+1, the other -1) and the game ends; a full board without a line is a draw.
3. Whose turn it is follows from the number of pieces, so a state is the two bitboards and nothing else.
4. Every question about lines is one look-up in a table with a row for each of the 512 bitboards.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from nlrl.envs.game import Game, Step
from nlrl.envs.random import Rng

Line = tuple[int, int, int]
Cells = tuple[int, ...]


class TicTacToeState(NamedTuple):
    """Bitboards of both players: bit i set means a piece on cell i."""

    o: int = 0
    x: int = 0


O, X = 0, 1  # noqa: E741 - the players' names
LINES: tuple[Line, ...] = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
"""The eight lines as cells: rows, columns, diagonals."""
SYMMETRIES: tuple[Cells, ...] = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8),
    (2, 5, 8, 1, 4, 7, 0, 3, 6),
    (8, 7, 6, 5, 4, 3, 2, 1, 0),
    (6, 3, 0, 7, 4, 1, 8, 5, 2),
    (2, 1, 0, 5, 4, 3, 8, 7, 6),
    (6, 7, 8, 3, 4, 5, 0, 1, 2),
    (0, 3, 6, 1, 4, 7, 2, 5, 8),
    (8, 5, 2, 7, 4, 1, 6, 3, 0),
)
"""The rotations and reflections of the board: symmetry k takes cell i to `SYMMETRIES[k][i]`; k = 0 is the identity."""

_FULL = 511
_BOARDS = range(_FULL + 1)
_BITS = tuple(1 << cell for cell in range(9))
_CELLS: tuple[Cells, ...] = tuple(tuple(cell for cell in range(9) if board >> cell & 1) for board in _BOARDS)
_COUNT = tuple(len(cells) for cells in _CELLS)
_LINE_BITS = tuple(sum(_BITS[cell] for cell in line) for line in LINES)
_WON_LINES: tuple[tuple[Line, ...], ...] = tuple(
    tuple(line for line, bits in zip(LINES, _LINE_BITS, strict=True) if board & bits == bits) for board in _BOARDS
)
_WON = tuple(bool(lines) for lines in _WON_LINES)
_UNTOUCHED_LINES: tuple[tuple[Line, ...], ...] = tuple(
    tuple(line for line, bits in zip(LINES, _LINE_BITS, strict=True) if not board & bits) for board in _BOARDS
)
_COMPLETING = tuple(
    sum(bit for bit in _BITS if any(bit & line and (board | bit) & line == line for line in _LINE_BITS))
    for board in _BOARDS
)
"""For each board, the cells (as bits) of a line whose other two cells are set."""
_IMAGES = tuple(tuple(sum(_BITS[to[cell]] for cell in _CELLS[board]) for board in _BOARDS) for to in SYMMETRIES)
_NAMES = tuple(str(cell + 1) for cell in range(9))
_ACTIONS = {name: cell for cell, name in enumerate(_NAMES)}
_RETURNS = {(False, False): (0.0, 0.0), (True, False): (1.0, -1.0), (False, True): (-1.0, 1.0)}
_RULE = "---+---+---"


def to_move(state: TicTacToeState) -> int:
    """The player whose turn it would be, terminal or not."""
    return (_COUNT[state.o] + _COUNT[state.x]) & 1


def line_text(line: Line) -> str:
    """The line as people number it: `(2, 4, 6)` is `3-5-7`."""
    return "-".join(str(cell + 1) for cell in line)


def free_cells(state: TicTacToeState) -> Cells:
    """Cells without a piece, in increasing order."""
    return _CELLS[_FULL ^ (state.o | state.x)]


def winning_cells(state: TicTacToeState, player: int) -> Cells:
    """Free cells where a piece of `player` would complete a line now, whoever is to move."""
    return _CELLS[_COMPLETING[state[player]] & ~(state.o | state.x)]


def open_lines(state: TicTacToeState, player: int) -> tuple[Line, ...]:
    """Lines without a piece of `player`'s opponent (they may be empty)."""
    return _UNTOUCHED_LINES[state[1 - player]]


def won_lines(state: TicTacToeState, player: int) -> tuple[Line, ...]:
    """Lines that `player` has completed."""
    return _WON_LINES[state[player]]


@cache  # of the 5,478 states that games reach
def _steps(state: TicTacToeState) -> tuple[Step[TicTacToeState] | None, ...]:
    """The rules: what playing each of the nine cells does, None where that is illegal."""
    o, x = state
    taken = _FULL if _WON[o] or _WON[x] else o | x
    o_moves = to_move(state) == O
    boards = [(o | bit, x) if o_moves else (o, x | bit) for bit in _BITS]
    return tuple(
        None if taken & bit else Step(1.0, TicTacToeState(o, x), _RETURNS[_WON[o], _WON[x]])
        for bit, (o, x) in zip(_BITS, boards, strict=True)
    )


@cache
def _text(state: TicTacToeState) -> str:
    symbols = [
        "O" if state.o & bit else "X" if state.x & bit else name for name, bit in zip(_NAMES, _BITS, strict=True)
    ]
    rows = [f" {symbols[i]} | {symbols[i + 1]} | {symbols[i + 2]}" for i in (0, 3, 6)]
    return f"\n{_RULE}\n".join(rows)


class TicTacToe(Game[TicTacToeState]):
    """Three in a row on a 3x3 board; returns are +1, 0 and -1."""

    name = "tictactoe"
    num_players = 2
    num_actions = 9
    max_length = 9
    value_range = (-1.0, 1.0)
    player_names = ("O", "X")

    @property
    def params(self) -> dict[str, Any]:
        return {}

    def initial_states(self) -> tuple[TicTacToeState, ...]:
        return (TicTacToeState(),)

    def current_player(self, state: TicTacToeState) -> int:
        return -1 if self.is_terminal(state) else to_move(state)

    def legal_actions(self, state: TicTacToeState) -> Cells:
        o, x = state
        return () if _WON[o] or _WON[x] else _CELLS[_FULL ^ (o | x)]

    def transitions(self, state: TicTacToeState, action: int) -> tuple[Step[TicTacToeState], ...]:
        return (self.apply(state, action),)

    def apply(self, state: TicTacToeState, action: int, rng: Rng | None = None) -> Step[TicTacToeState]:
        step = _steps(state)[action] if 0 <= action < 9 else None
        if step is None:
            raise ValueError(f"action {action!r} is illegal in {state}; legal: {self.legal_actions(state)}")
        return step

    def is_terminal(self, state: TicTacToeState) -> bool:
        o, x = state
        return _WON[o] or _WON[x] or o | x == _FULL

    def returns(self, state: TicTacToeState) -> tuple[float, ...]:
        return _RETURNS[_WON[state.o], _WON[state.x]]

    def to_text(self, state: TicTacToeState) -> str:
        return _text(state)

    def parse_text(self, text: str) -> TicTacToeState:
        lines = text.strip("\n").split("\n")
        if len(lines) != 5:
            raise ValueError(f"a board has 5 lines (3 rows, 2 rules between them), not {len(lines)}")
        for number in (2, 4):
            if lines[number - 1].strip() != _RULE:
                raise ValueError(f"line {number}: expected {_RULE!r}, not {lines[number - 1]!r}")
        boards = [0, 0]
        for row in range(3):
            _read_row(lines[2 * row], row, boards)
        state = TicTacToeState(*boards)
        _require_reachable(state)
        return state

    def action_text(self, state: TicTacToeState, action: int) -> str:
        return _NAMES[action]

    def parse_action(self, state: TicTacToeState, text: str) -> int | None:
        action = _ACTIONS.get(text)
        return action if action in self.legal_actions(state) else None

    def render_svg(
        self,
        state: TicTacToeState,
        last_move: int | None = None,
        arrows: dict[int, float] | None = None,
        marks: dict[int, str] | None = None,
    ) -> str:
        from nlrl.envs import tictactoe_svg

        return tictactoe_svg.draw(state, last_move, arrows or {}, marks or {})

    def symmetries(self, state: TicTacToeState) -> tuple[TicTacToeState, ...]:
        """The eight images of `state`, in the order of `SYMMETRIES` (equal ones are not removed)."""
        return tuple(TicTacToeState(image[state.o], image[state.x]) for image in _IMAGES)


def _read_row(line: str, row: int, boards: list[int]) -> None:
    """Adds the pieces of one row of text to `boards` (O's bits, X's bits)."""
    symbols = [symbol.strip() for symbol in line.split("|")]
    if len(symbols) != 3:
        raise ValueError(f"line {2 * row + 1}: expected 3 cells between '|', not {line!r}")
    for cell, symbol in enumerate(symbols, start=3 * row):
        if symbol in ("O", "X"):
            boards["OX".index(symbol)] |= _BITS[cell]
        elif symbol != str(cell + 1):
            raise ValueError(f"line {2 * row + 1}: expected 'O', 'X' or the cell's number '{cell + 1}', not {symbol!r}")


def _require_reachable(state: TicTacToeState) -> None:
    """Refuses boards that no game passes through; piece counts and finished lines decide (tested on all boards)."""
    o, x = _COUNT[state.o], _COUNT[state.x]
    if o - x not in (0, 1):
        raise ValueError(f"impossible board: {o} O and {x} X (O moves first, so O has as many as X or one more)")
    if _WON[state.o] and _WON[state.x]:
        raise ValueError("impossible board: both O and X have a line")
    if (_WON[state.o] and o == x) or (_WON[state.x] and o > x):
        winner = "O" if _WON[state.o] else "X"
        raise ValueError(f"impossible board: {winner} has a line, yet a move was made after it")
