"""Symmetries of the games: maps of states and actions that commute with the rules.

1. A `Symmetry` g takes a state to a state and each action there to an action. Playing a and then mapping is mapping and
   then playing g(a): probabilities and the rewards of both players agree. Where g exchanges the players
   (`swaps_players`), their rewards are exchanged, so the value for the player to move is the same everywhere.
2. Boards are mapped within their game. A lake or a maze that is turned is, in general, another lake or maze: `game(s)`
   is the game that the image of s belongs to, and is the game itself where the map is its own image.
3. `symmetries_of` gives all of a game's symmetries but the identity; together with it they are a group.
4. `mismatch` holds a symmetry to the rules, one state at a time.

In Tic-Tac-Toe O always moves first, so exchanging the colours of a board gives a board that no game passes through. It
is an exchange of *names*, which only a text can show: `exchange_names`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from nlrl.envs.game import Game


class Symmetry(Protocol):
    """One map. Equal states have equal images; the images of different actions differ."""

    @property
    def name(self) -> str:
        """What people call it, e.g. `turned by 90`."""
        ...

    @property
    def swaps_players(self) -> bool: ...

    def game(self, state: Any, /) -> Game[Any]:
        """The game that the image of `state` belongs to."""
        ...

    def state(self, state: Any, /) -> Any:
        """The image of a state."""
        ...

    def action(self, state: Any, action: int, /) -> int:
        """The image of an action in `state`."""
        ...


def symmetries_of(game: Game[Any]) -> tuple[Symmetry, ...]:
    """All symmetries of a game but the identity; none for a game that registered none."""
    maker = _MAKERS.get(game.name)
    return tuple(maker(game)) if maker else ()


def register_symmetries(game_name: str, maker: Callable[[Any], Sequence[Symmetry]]) -> None:
    """Makes a game's symmetries known: `maker(game)` gives all but the identity."""
    _MAKERS[game_name] = maker


def mismatch(game: Game[Any], symmetry: Symmetry, state: Any) -> str | None:
    """How a symmetry breaks the rules in one state; None if it does not."""
    try:
        return _end_mismatch(game, symmetry, state) or _step_mismatch(game, symmetry, state)
    except ValueError as error:
        return f"the rules refuse the image: {error}"


def _end_mismatch(game: Game[Any], symmetry: Symmetry, state: Any) -> str | None:
    other, image = symmetry.game(state), symmetry.state(state)
    if game.is_terminal(state) != other.is_terminal(image):
        return "only one of the two is terminal"
    if _seats(symmetry, game.returns(state)) != _rounded(other.returns(image)):
        return f"returns {game.returns(state)} become {other.returns(image)}"
    return None


def _step_mismatch(game: Game[Any], symmetry: Symmetry, state: Any) -> str | None:
    other, image = symmetry.game(state), symmetry.state(state)
    actions = {action: symmetry.action(state, action) for action in game.legal_actions(state)}
    if sorted(actions.values()) != sorted(other.legal_actions(image)):
        return f"legal actions become {sorted(actions.values())}, those of the image are {other.legal_actions(image)}"
    for action, mapped in actions.items():
        steps, found = game.transitions(state, action), other.transitions(image, mapped)
        expected = {(symmetry.state(s.state), round(s.probability, 9), _seats(symmetry, s.rewards)) for s in steps}
        if expected != {(s.state, round(s.probability, 9), _rounded(s.rewards)) for s in found}:
            return f"action {action} leads to {steps}, its image {mapped} to {found}"
    return None


def exchange_names(game: Game[Any], text: str) -> str:
    """A text with the names of the two players exchanged, as whole words: `X is to move` becomes `O is to move`.

    Raises:
        ValueError: not a two-player game.
    """
    if game.num_players != 2:
        raise ValueError(f"{game.spec}: names are exchanged between two players")
    first, second = game.player_names
    other = {first: second, second: first, first.title(): second.title(), second.title(): first.title()}
    return re.sub(rf"\b(?:{'|'.join(map(re.escape, other))})\b", lambda match: other[match.group()], text)


def _seats(symmetry: Symmetry, numbers: tuple[float, ...]) -> tuple[float, ...]:
    """What players are paid, as the players of the image are paid it."""
    return _rounded(numbers[::-1] if symmetry.swaps_players else numbers)


def _rounded(numbers: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(number, 9) + 0.0 for number in numbers)


# -- the square --------------------------------------------------------------------------------------------------------
Cell = tuple[int, int]


class Turn(NamedTuple):
    """A rotation or reflection of a grid: rows and columns are flipped first, then exchanged."""

    name: str
    flip_rows: bool = False
    flip_columns: bool = False
    transpose: bool = False

    def cell(self, cell: Cell, height: int, width: int) -> Cell:
        """Where a cell (row, column) of a grid of this size lands."""
        row = height - 1 - cell[0] if self.flip_rows else cell[0]
        column = width - 1 - cell[1] if self.flip_columns else cell[1]
        return (column, row) if self.transpose else (row, column)

    def step(self, step: Cell) -> Cell:
        """What a step of (rows, columns) becomes."""
        row, column = -step[0] if self.flip_rows else step[0], -step[1] if self.flip_columns else step[1]
        return (column, row) if self.transpose else (row, column)

    def rows(self, rows: Sequence[str]) -> tuple[str, ...]:
        """A picture, turned."""
        turned = [row[::-1] if self.flip_columns else row for row in (rows[::-1] if self.flip_rows else rows)]
        return tuple("".join(column) for column in zip(*turned, strict=True)) if self.transpose else tuple(turned)


TURNS = (
    Turn("turned by 90", flip_rows=True, transpose=True),
    Turn("turned by 180", flip_rows=True, flip_columns=True),
    Turn("turned by 270", flip_columns=True, transpose=True),
    Turn("mirrored left-right", flip_columns=True),
    Turn("mirrored top-bottom", flip_rows=True),
    Turn("mirrored on the diagonal", transpose=True),
    Turn("mirrored on the antidiagonal", flip_rows=True, flip_columns=True, transpose=True),
)
"""The seven rotations (clockwise) and reflections of the square that move something."""


# -- the games ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Within:
    """A symmetry that stays in its game."""

    name: str
    own: Game[Any]
    state: Callable[[Any], Any]
    action: Callable[[Any, int], int]
    swaps_players: bool = False

    def game(self, state: Any) -> Game[Any]:
        return self.own


def _tictactoe(game: Any) -> list[Symmetry]:
    from nlrl.envs.tictactoe import TicTacToeState

    def make(turn: Turn) -> Symmetry:
        to = [3 * row + column for row, column in (turn.cell(divmod(cell, 3), 3, 3) for cell in range(9))]

        def turned(board: int) -> int:
            return sum(1 << to[cell] for cell in range(9) if board >> cell & 1)

        return _Within(
            turn.name, game, lambda s: TicTacToeState(turned(s.o), turned(s.x)), lambda _, action: to[action]
        )

    return [make(turn) for turn in TURNS]


def _breakthrough(game: Any) -> list[Symmetry]:
    """Left-right mirror, exchange of the colours with a half turn, and both together (a top-bottom flip)."""
    from nlrl.envs.breakthrough.board import BreakthroughState

    rows, columns = game.rows, game.columns

    def make(turn: Turn, name: str, swap: bool) -> Symmetry:
        to = [r * columns + c for r, c in (turn.cell(divmod(i, columns), rows, columns) for i in range(rows * columns))]

        def turned(board: int) -> int:
            return sum(1 << to[cell] for cell in range(len(to)) if board >> cell & 1)

        def state(s: BreakthroughState) -> BreakthroughState:
            black, white = turned(s.black), turned(s.white)
            return BreakthroughState(white, black, 1 - s.player) if swap else BreakthroughState(black, white, s.player)

        def action(_: Any, action: int) -> int:
            cell, direction = divmod(action, 3)
            return 3 * to[cell] + (2 - direction if turn.flip_columns else direction)

        return _Within(name, game, state, action, swap)

    _, half_turn, _, mirror, flip, *_ = TURNS
    return [
        make(mirror, mirror.name, False),
        make(half_turn, "colours exchanged, turned by 180", True),
        make(flip, "colours exchanged, mirrored top-bottom", True),
    ]


@dataclass(frozen=True)
class _LakeTurn:
    """A lake, turned: the image belongs to the lake that the turned map draws."""

    own: Any
    turn: Turn
    swaps_players: bool = False

    @property
    def name(self) -> str:
        return self.turn.name

    def game(self, state: Any) -> Game[Any]:
        map_ = self.state(state).map
        if map_ == state.map:
            return self.own
        return type(self.own)(layout=map_, slippery=self.own.slippery, max_steps=self.own.max_length)

    def state(self, state: Any) -> Any:
        rows = state.map.split("/")
        turned = self.turn.rows(rows)
        row, column = self.turn.cell(divmod(state.cell, len(rows[0])), len(rows), len(rows[0]))
        return type(state)("/".join(turned), row * len(turned[0]) + column)

    def action(self, state: Any, action: int) -> int:
        from nlrl.envs.frozen_lake import DIRECTIONS

        return DIRECTIONS.index(self.turn.step(DIRECTIONS[action]))


def _frozen_lake(game: Any) -> list[Symmetry]:
    return [_LakeTurn(game, turn) for turn in TURNS]


@dataclass(frozen=True)
class _MazeTurn:
    """A maze, turned: walls, goal, starts and what the walker remembers."""

    own: Any
    other: Game[Any]
    turn: Turn
    swaps_players: bool = False

    @property
    def name(self) -> str:
        return self.turn.name

    def game(self, state: Any) -> Game[Any]:
        return self.other

    def state(self, state: Any) -> Any:
        rows = self.own.grid.rows
        history = tuple(seen._replace(**self._seen(seen)) for seen in state.history)
        return type(state)(*self.turn.cell(state.cell, len(rows), len(rows[0])), history)

    def action(self, state: Any, action: int) -> int:
        from nlrl.envs.maze.state import DELTAS, NO_MOVE

        return action if action == NO_MOVE else DELTAS.index(self.turn.step(DELTAS[action]))

    def _seen(self, seen: Any) -> dict[str, int]:
        walls = sum(1 << self.action(None, action) for action in range(4) if seen.walls >> action & 1)
        return {"walls": walls, "action": self.action(None, seen.action)}


def _maze(game: Any) -> list[Symmetry]:
    return [_MazeTurn(game, _turned_maze(game, turn), turn) for turn in TURNS]


def _turned_maze(game: Any, turn: Turn) -> Game[Any]:
    from nlrl.envs.maze.layouts import Layout

    rows = game.grid.rows
    size = len(rows), len(rows[0])
    goal, starts = turn.cell(game.grid.goal, *size), {turn.cell(s.cell, *size) for s in game.initial_states()}
    if (turn.rows(rows), goal, starts) == (rows, game.grid.goal, {s.cell for s in game.initial_states()}):
        return game
    layout = Layout(turn.rows(rows), goal).to_text()
    kept = {"observed": game.observed, "history": game.history, "max_steps": game.max_length}
    return type(game)(layout=layout, starts=tuple(sorted(starts)), **kept)


_MAKERS: dict[str, Callable[[Any], Sequence[Symmetry]]] = {
    "breakthrough": _breakthrough,
    "frozen_lake": _frozen_lake,
    "maze": _maze,
    "tictactoe": _tictactoe,
}
