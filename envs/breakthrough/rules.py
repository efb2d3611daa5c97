"""Breakthrough (Dan Troyka, 2000) on 3 to 8 rows and columns, on bitboards.

1. Bit `row * columns + column` of a player's bitboard is a pawn on that cell; row 0 is on top. People name the cell by
   its column's letter and its rank `rows - row`: on a board of five rows, the top left cell is a5.
2. Black (player 0) starts on the top rows, moves down and moves first; white (player 1) starts on the bottom rows and
   moves up.
3. A pawn moves one row ahead: straight to an empty cell, or diagonally to a cell that is empty or holds an enemy, which
   is captured. An action is `3 * cell + direction`, with the cell moved from and direction 0, 1 or 2 for a lower, the
   same or a higher column.
4. Whoever reaches the far row or captures the last enemy pawn wins (+1, the other -1). There are no draws: a player's
   foremost pawn has no own pawn ahead of it, so it can always move diagonally.
"""

from __future__ import annotations

from typing import Any

from nlrl.envs.breakthrough import text as texts
from nlrl.envs.breakthrough.board import BLACK, NAMES, SIZES, WHITE, BreakthroughState, board
from nlrl.envs.game import Game, Step
from nlrl.envs.random import Rng

_ANYWHERE = (1 << 64) - 1
"""The cells of the largest board."""
_UNDECIDED = (0.0, 0.0)
_WON_BY = ((1.0, -1.0), (-1.0, 1.0))
_new = tuple.__new__
"""Makes a named tuple in half the time of its own constructor, which is a Python function."""


class Breakthrough(Game[BreakthroughState]):
    """Breakthrough on `rows` x `columns` cells with `pawn_rows` full rows of pawns a side; returns are +1 and -1.

    `pawn_rows` None means two where there are at least five rows, else one. Every method that takes a state raises
    ValueError where it is not one of this game.

    Raises:
        ValueError: `rows` or `columns` outside 3..8, or `pawn_rows` outside 1..rows // 2.
    """

    name = "breakthrough"
    num_players = 2
    value_range = (-1.0, 1.0)
    player_names = NAMES

    def __init__(self, rows: int = 5, columns: int = 5, pawn_rows: int | None = None):
        for what, size in (("rows", rows), ("columns", columns)):
            if not isinstance(size, int) or size not in SIZES:
                raise ValueError(f"{what} must be from {SIZES[0]} to {SIZES[-1]}, not {size!r}")
        pawn_rows = (2 if rows >= 5 else 1) if pawn_rows is None else pawn_rows
        if pawn_rows not in range(1, rows // 2 + 1):
            raise ValueError(f"pawn_rows must be from 1 to {rows // 2} on {rows} rows, not {pawn_rows!r}")
        self.rows, self.columns, self.pawn_rows = rows, columns, pawn_rows
        self.board = board(rows, columns)
        self.num_actions = 3 * self.board.cells
        # Every move takes one pawn one row ahead, and the first step onto a far row ends the game. So a pawn from the
        # k-th row of its side (k = 0, 1, ...) makes at most rows - 2 - k steps, and one pawn of all makes one more.
        self.max_length = 2 * columns * sum(rows - 2 - k for k in range(pawn_rows)) + 1
        black = (1 << pawn_rows * columns) - 1
        self._start = BreakthroughState(black, black << (rows - pawn_rows) * columns, BLACK)
        # Short ways to what play looks up at every step.
        tables = self.board
        self._cells, self._goals, self._moves = tables.cells, tables.goals, tables.moves
        self._black_texts, self._white_texts = tables.move_texts
        self._action_windows, self._name_windows = tables.action_windows, tables.name_windows
        self._text_windows, self._middles = tables.text_windows, texts.middles(tables)
        # Where no pawn of a side is while the game goes on: its far row, and what only larger boards have.
        self._no_black, self._no_white = (_ANYWHERE & ~tables.full | goal for goal in tables.goals)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.rows, self.columns, self.pawn_rows)

    @property
    def params(self) -> dict[str, Any]:
        return {"rows": self.rows, "columns": self.columns, "pawn_rows": self.pawn_rows}

    # -- rules ---------------------------------------------------------------------------------------------------------
    def initial_states(self) -> tuple[BreakthroughState, ...]:
        return (self._start,)

    def current_player(self, state: BreakthroughState) -> int:
        return -1 if self.is_terminal(state) else state[2]

    # The methods that play calls at every step begin with the same few lines (a shared function makes play a fifth
    # slower): a quick look that goes on while the game does, and leaves its end and what is odd to `_require`.

    def is_terminal(self, state: BreakthroughState) -> bool:
        if type(state) is BreakthroughState:
            black, white, player = state
            if black and white and not (black & self._no_black or white & self._no_white) and player in (0, 1):
                return False
        self._require(state)
        return True

    def legal_actions(self, state: BreakthroughState) -> tuple[int, ...]:
        if type(state) is not BreakthroughState:
            self._require(state)
        black, white, player = state
        if not (black and white) or black & self._no_black or white & self._no_white or player not in (0, 1):
            self._require(state)
            return ()
        boards = (white if player else black) | (black | white) << self._cells
        actions: list[int] = []
        for shift, mask, known, work_out in self._action_windows[player]:
            key = boards >> shift & mask
            try:
                actions += known[key]
            except KeyError:
                actions += known.setdefault(key, work_out(key))
        return tuple(actions)

    def legal_moves(self, state: BreakthroughState) -> dict[int, str]:
        """Legal action -> its text, in increasing order of action: one question instead of one for each action."""
        if type(state) is not BreakthroughState:
            self._require(state)
        black, white, player = state
        if not (black and white) or black & self._no_black or white & self._no_white or player not in (0, 1):
            self._require(state)
            return {}
        boards = (white if player else black) | (black | white) << self._cells
        moves: dict[int, str] = {}
        for shift, mask, known, work_out in self._name_windows[player]:
            key = boards >> shift & mask
            try:
                moves |= known[key]
            except KeyError:
                moves |= known.setdefault(key, work_out(key))
        return moves

    def transitions(self, state: BreakthroughState, action: int) -> tuple[Step[BreakthroughState], ...]:
        return (self.apply(state, action),)

    def apply(self, state: BreakthroughState, action: int, rng: Rng | None = None) -> Step[BreakthroughState]:
        if type(state) is not BreakthroughState:
            self._require(state)
        black, white, player = state
        if not (black and white) or black & self._no_black or white & self._no_white or player not in (0, 1):
            self._require(state)
            raise self._illegal(state, action)
        if player:
            own, enemy = white, black
        else:
            own, enemy = black, white
        try:
            source, target, stop = self._moves[player][action]
        except KeyError:
            raise self._illegal(state, action) from None
        if not source & own or target & own or stop & enemy:
            raise self._illegal(state, action)
        own ^= source | target
        enemy &= ~target
        rewards = _WON_BY[player] if not enemy or target & self._goals[player] else _UNDECIDED
        after = (enemy, own, BLACK) if player else (own, enemy, WHITE)
        return _new(Step, (1.0, _new(BreakthroughState, after), rewards))

    def _illegal(self, state: BreakthroughState, action: int) -> ValueError:
        return ValueError(f"{self.spec}: action {action!r} is illegal in {state}; legal: {self.legal_actions(state)}")

    def returns(self, state: BreakthroughState) -> tuple[float, ...]:
        return _WON_BY[1 - state[2]] if self.is_terminal(state) else _UNDECIDED

    def _require(self, state: BreakthroughState) -> None:
        """Refuses what is not a state of this game."""
        if type(state) is not BreakthroughState:
            raise ValueError(f"{state!r} is not a state of {self.spec}: it is a {type(state).__name__}")
        problem = self.board.problem(state.black, state.white, self.pawn_rows * self.columns)
        if not problem and state.player not in (0, 1):
            problem = f"player must be 0 (black) or 1 (white), not {state.player!r}"
        if not problem and self.board.winner(state.black, state.white) == state.player:
            problem = f"{NAMES[state.player]} has won, so the player to move is the other one"
        if problem:
            raise ValueError(f"{state} is not a state of {self.spec}: {problem}")

    # -- values --------------------------------------------------------------------------------------------------------
    def make_oracle(self) -> Any:
        from nlrl.envs.breakthrough.oracle import BreakthroughOracle  # numba only where it is needed

        return BreakthroughOracle(self)

    def heuristic(self, state: BreakthroughState) -> float:
        """Whose pawns are more and further ahead: one is worth `rows`, and one more for each row that it has moved."""
        if self.is_terminal(state):
            return self.returns(state)[state.player]
        rows, columns, row = self.rows, self.columns, self._goals[WHITE]
        black = sum((rows + r) * (state.black >> r * columns & row).bit_count() for r in range(rows))
        white = sum((2 * rows - 1 - r) * (state.white >> r * columns & row).bit_count() for r in range(rows))
        ahead = 0.9 * (black - white) / (black + white)
        return -ahead if state.player else ahead

    # -- text and pictures ---------------------------------------------------------------------------------------------
    def to_text(self, state: BreakthroughState) -> str:
        if type(state) is not BreakthroughState:
            self._require(state)
        black, white, player = state
        middles = self._middles[False]
        if not (black and white) or black & self._no_black or white & self._no_white or player not in (0, 1):
            self._require(state)
            middles = self._middles[True]
        boards = black | white << self._cells
        lines = blacks = whites = ""
        for shift, mask, known, work_out in self._text_windows:
            key = boards >> shift & mask
            try:
                some_lines, some_blacks, some_whites = known[key]
            except KeyError:
                some_lines, some_blacks, some_whites = known.setdefault(key, work_out(key))
            lines += some_lines
            blacks += some_blacks
            whites += some_whites
        return f"{lines}{middles[player]}{blacks or ' none'}\nWhite:{whites or ' none'}"

    def pawn_texts(self, state: BreakthroughState) -> tuple[str, str]:
        """The cells of black's pawns and of white's, by name from the top left, with a space before each."""
        boards = state[0] | state[1] << self._cells
        blacks = whites = ""
        for shift, mask, known, work_out in self._text_windows:
            key = boards >> shift & mask
            try:
                _, some_blacks, some_whites = known[key]
            except KeyError:
                _, some_blacks, some_whites = known.setdefault(key, work_out(key))
            blacks += some_blacks
            whites += some_whites
        return blacks, whites

    def parse_text(self, text: str) -> BreakthroughState:
        """The inverse of `to_text`. A board need not be reachable from the start: any position can be studied.

        Raises:
            ValueError: the text is no board of this game; the message names the line and what is wrong there.
        """
        return texts.read(self.board, self.pawn_rows * self.columns, text)

    def action_text(self, state: BreakthroughState, action: int) -> str:
        try:
            if state[2]:
                target, quiet, capture = self._white_texts[action]
                return capture if target & state[0] else quiet
            target, quiet, capture = self._black_texts[action]
            return capture if target & state[1] else quiet
        except (LookupError, TypeError):
            self._require(state)
            raise ValueError(f"{self.spec}: action {action!r} is no move of {NAMES[state.player]}") from None

    def parse_action(self, state: BreakthroughState, text: str) -> int | None:
        if self.is_terminal(state):
            return None
        black, white, player = state
        action = self.board.actions[player].get(text)
        if action is None:
            return None
        own, enemy = (white, black) if player else (black, white)
        source, target, stop = self._moves[player][action]
        if not source & own or target & own or stop & enemy:
            return None
        return action if self.action_text(state, action) == text else None

    def render_svg(
        self,
        state: BreakthroughState,
        last_move: int | None = None,
        arrows: dict[int, float] | None = None,
        marks: dict[int, str] | None = None,
    ) -> str:
        from nlrl.envs.breakthrough import drawing

        self._require(state)
        return drawing.draw(self.board, state, last_move, arrows or {}, marks or {})

    # -- symmetry ------------------------------------------------------------------------------------------------------
    def symmetries(self, state: BreakthroughState) -> tuple[BreakthroughState, ...]:
        """The state and its left-right mirror image (equal ones are not removed)."""
        self._require(state)
        mirror = self.board.mirror
        return state, BreakthroughState(mirror(state.black), mirror(state.white), state.player)
