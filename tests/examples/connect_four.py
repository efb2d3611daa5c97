"""Connect Four: four in a line on a board where pieces fall. The worked example of docs/adding_a_game.md.

1. A board is an integer with a bit for each cell: column by column, from the bottom up, with one unused bit on top of
   each column, so that no line runs over the edge.
2. O is player 0 and moves first. Whose turn it is follows from the number of pieces.
3. An action is a column, 0 to columns - 1; people call it column 1, 2, ...
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nlrl.envs import svg
from nlrl.envs.game import Game, Step
from nlrl.errors import NLRLError


class ConnectFourState(NamedTuple):
    """Bitboards of both players."""

    o: int = 0
    x: int = 0


class ConnectFour(Game[ConnectFourState]):
    """Connect Four on `rows` by `columns` cells.

    Raises:
        ValueError: a size outside 3 to 9, or no room for four in a line.
    """

    name = "connect_four"
    num_players = 2
    value_range = (-1.0, 1.0)
    player_names = ("O", "X")

    def __init__(self, rows: int = 6, columns: int = 7):
        if not (3 <= rows <= 9 and 3 <= columns <= 9 and max(rows, columns) >= 4):
            raise ValueError(f"rows and columns must be 3 to 9, one of them at least 4, not {rows} and {columns}")
        self.rows, self.columns = rows, columns
        self.num_actions = columns
        self.max_length = rows * columns
        self._steps = (1, rows + 1, rows, rows + 2)  # up, right, and the two diagonals, as distances between bits

    @property
    def params(self) -> dict[str, Any]:
        return {"rows": self.rows, "columns": self.columns}

    # -- rules ---------------------------------------------------------------------------------------------------------
    def initial_states(self) -> tuple[ConnectFourState, ...]:
        return (ConnectFourState(),)

    def current_player(self, state: ConnectFourState) -> int:
        return -1 if self.is_terminal(state) else self._mover(state)

    def legal_actions(self, state: ConnectFourState) -> tuple[int, ...]:
        if self._has_line(state.o) or self._has_line(state.x):
            return ()
        return tuple(column for column in range(self.columns) if self._height(state, column) < self.rows)

    def transitions(self, state: ConnectFourState, action: int) -> tuple[Step[ConnectFourState], ...]:
        if action not in self.legal_actions(state):
            raise ValueError(f"action {action!r} is illegal in {state}; legal: {self.legal_actions(state)}")
        boards = list(state)
        boards[self._mover(state)] |= self._bit(self._height(state, action), action)
        after = ConnectFourState(*boards)
        return (Step(1.0, after, self.returns(after)),)

    def is_terminal(self, state: ConnectFourState) -> bool:
        return not self.legal_actions(state)

    def returns(self, state: ConnectFourState) -> tuple[float, ...]:
        if self._has_line(state.o):
            return (1.0, -1.0)
        return (-1.0, 1.0) if self._has_line(state.x) else (0.0, 0.0)

    def _mover(self, state: ConnectFourState) -> int:
        return (state.o | state.x).bit_count() % 2

    def _bit(self, row: int, column: int) -> int:
        """The cell `row` cells above the bottom."""
        return 1 << (column * (self.rows + 1) + row)

    def _height(self, state: ConnectFourState, column: int) -> int:
        """Pieces in a column."""
        return ((state.o | state.x) >> (column * (self.rows + 1)) & ((1 << self.rows) - 1)).bit_count()

    def _has_line(self, board: int) -> bool:
        pairs = ((board & board >> step, step) for step in self._steps)
        return any(pair & pair >> 2 * step for pair, step in pairs)

    # -- text ----------------------------------------------------------------------------------------------------------
    def to_text(self, state: ConnectFourState) -> str:
        columns = range(self.columns)
        rows = [" ".join(self._symbol(state, row, column) for column in columns) for row in self._downwards()]
        return "\n".join([*rows, self._footer()])

    def parse_text(self, text: str) -> ConnectFourState:
        lines = text.split("\n")
        if len(lines) != self.rows + 1 or lines[-1] != self._footer():
            raise ValueError(f"a board has {self.rows} rows and then the line {self._footer()!r}, not {text!r}")
        boards = {"O": 0, "X": 0}
        for line, row in zip(lines, self._downwards(), strict=False):
            cells = line.split(" ")
            if len(cells) != self.columns or not set(cells) <= {"O", "X", "."}:
                raise ValueError(f"a row has {self.columns} cells of 'O', 'X' or '.', not {line!r}")
            for column, symbol in enumerate(cells):
                if symbol in boards:
                    boards[symbol] |= self._bit(row, column)
        state = ConnectFourState(boards["O"], boards["X"])
        self._require_possible(state)
        return state

    def action_text(self, state: ConnectFourState, action: int) -> str:
        return str(action + 1)

    def parse_action(self, state: ConnectFourState, text: str) -> int | None:
        moves = {self.action_text(state, action): action for action in self.legal_actions(state)}
        return moves.get(text)

    def _downwards(self) -> range:
        return range(self.rows - 1, -1, -1)

    def _footer(self) -> str:
        return " ".join(str(column + 1) for column in range(self.columns))

    def _symbol(self, state: ConnectFourState, row: int, column: int) -> str:
        bit = self._bit(row, column)
        return "O" if state.o & bit else "X" if state.x & bit else "."

    def _require_possible(self, state: ConnectFourState) -> None:
        """Refuses boards that cannot be: hanging pieces, wrong counts, moves after a win."""
        for column in range(self.columns):
            height = self._height(state, column)
            if any(self._symbol(state, row, column) == "." for row in range(height)):
                raise ValueError(f"impossible board: a piece hangs in the air in column {column + 1}")
        ahead = state.o.bit_count() - state.x.bit_count()
        if ahead not in (0, 1):
            raise ValueError(f"impossible board: O has as many pieces as X or one more, not {ahead:+}")
        if (self._has_line(state.o) and not ahead) or (self._has_line(state.x) and ahead):
            raise ValueError("impossible board: a move was made after a line was complete")

    # -- exact values --------------------------------------------------------------------------------------------------
    def make_oracle(self) -> Any:
        if self.rows * self.columns > 16:
            raise NLRLError(f"{self.spec} has too many states for exact tables; boards of up to 16 cells have them")
        return super().make_oracle()

    # -- symmetry and pictures -----------------------------------------------------------------------------------------
    def symmetries(self, state: ConnectFourState) -> tuple[ConnectFourState, ...]:
        """The board and its mirror image."""
        return state, ConnectFourState(self._mirrored(state.o), self._mirrored(state.x))

    def _mirrored(self, board: int) -> int:
        width, column = self.rows + 1, (1 << self.rows) - 1
        return sum((board >> c * width & column) << (self.columns - 1 - c) * width for c in range(self.columns))

    def render_svg(
        self,
        state: ConnectFourState,
        last_move: int | None = None,
        arrows: dict[int, float] | None = None,
        marks: dict[int, str] | None = None,
    ) -> str:
        cell, top = 40, 50
        root = svg.canvas(cell * self.columns, top + cell * (self.rows + 1), f"Connect Four: {self._headline(state)}")
        for column in range(self.columns):
            x = cell * (column + 0.5)
            for row in range(self.rows):
                y = top + cell * (self.rows - row - 0.5)
                self._draw_cell(root, x, y, self._symbol(state, row, column))
            if column == last_move:
                y = top + cell * (self.rows - self._height(state, column) + 0.5)
                svg.shape(root, "circle", cx=x, cy=y, r=18, fill="none", stroke=svg.LAST_MOVE, stroke_width=2)
            weight = (arrows or {}).get(column, 0.0)
            svg.shape(root, "circle", cx=x, cy=top - 15, r=12 * weight**0.5, fill=svg.CANDIDATE, fill_opacity=0.5)
            svg.label(root, x, 12, (marks or {}).get(column, ""), size=12)
            svg.label(root, x, top + cell * (self.rows + 0.5), str(column + 1), size=14)
        return svg.to_string(root)

    def _headline(self, state: ConnectFourState) -> str:
        if not self.is_terminal(state):
            return f"{self.player_names[self._mover(state)]} to move"
        return {1.0: "O has won", -1.0: "X has won", 0.0: "a draw"}[self.returns(state)[0]]

    def _draw_cell(self, root: Any, x: float, y: float, symbol: str) -> None:
        """O is a ring and X a cross: shape, not colour alone, tells players apart."""
        svg.shape(root, "rect", x=x - 20, y=y - 20, width=40, height=40, fill="none", stroke=svg.GRID)
        if symbol == "O":
            svg.shape(root, "circle", cx=x, cy=y, r=11, fill="none", stroke=svg.FIRST, stroke_width=5)
        elif symbol == "X":
            for way in (-1, 1):
                ends = {"x1": x - 10, "y1": y - 10 * way, "x2": x + 10, "y2": y + 10 * way}
                svg.shape(root, "line", **ends, stroke=svg.SECOND, stroke_width=5, stroke_linecap="round")
