"""States as arrays, for learners that read numbers.

1. Board games are planes `(3, rows, columns)` of 0 and 1 from one player's view: own pieces, the other's pieces, and a
   plane of ones for the player who moves first in the game (the board is not turned round).
2. Grid worlds are planes `(3, rows, columns)` as well: the player, what to avoid (walls or holes), the goals.
3. A maze that is partially observed is rows `(history + 1, 9)`, now first and then back in time: walls to the left,
   right, up and down, which of these ways was then taken, and whether there is such a step at all.
4. Any other game is its text as a picture: `(lines, columns)` of character codes. It is what `Game.observation_text`
   tells the player and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nlrl.envs.adapters.survey import survey
from nlrl.envs.game import Game
from nlrl.errors import NLRLError

Encode = Callable[[Any, int], NDArray[Any]]


class Features(NamedTuple):
    """How states of one game become arrays: `encode(state, player)` gives a new `(*shape)` array in 0..high."""

    shape: tuple[int, ...]
    high: int
    dtype: type
    encode: Encode


def features_of(game: Game[Any]) -> Features:
    """The features of `game`."""
    planes = _PLANES.get(game.name)
    if planes is None:
        height, width = shape = survey(game).text_size
        return Features(shape, 255, np.uint8, partial(_text_codes, game, height, width))
    encode = planes(game)
    return Features(encode(game.initial_states()[0], 0).shape, 1, np.int8, encode)


def action_mask(game: Game[Any], legal: tuple[int, ...]) -> NDArray[np.int8]:
    """`(num_actions,)`: 1 for the legal actions."""
    mask = np.zeros(game.num_actions, np.int8)
    mask[list(legal)] = 1
    return mask


def _text_codes(game: Game[Any], height: int, width: int, state: Any, player: int) -> NDArray[np.uint8]:
    lines = game.observation_text(state, player).split("\n")
    if len(lines) > height or max(map(len, lines)) > width:
        raise NLRLError(f"{game.spec}: the text of {state!r} is larger than {height} x {width}; observe text instead")
    codes = np.full((height, width), ord(" "), np.uint8)
    for row, line in enumerate(lines):
        codes[row, : len(line)] = np.frombuffer(line.encode("latin-1", "replace"), np.uint8)
    return codes


# -- board games -------------------------------------------------------------------------------------------------------
def _bits(board: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The bitboard as an array: bit i is cell i, row by row."""
    cells = shape[0] * shape[1]
    return np.unpackbits(np.frombuffer(board.to_bytes(8, "little"), np.uint8), bitorder="little", count=cells).reshape(
        shape
    )


def _two_boards(rows: int, columns: int, state: Any, player: int) -> NDArray[np.int8]:
    """For states that begin with the bitboards of player 0 and player 1."""
    planes = np.empty((3, rows, columns), np.int8)
    planes[0], planes[1] = _bits(state[player], (rows, columns)), _bits(state[1 - player], (rows, columns))
    planes[2] = player == 0
    return planes


# -- grid worlds -------------------------------------------------------------------------------------------------------
def _lake(state: Any, player: int) -> NDArray[np.int8]:
    from nlrl.envs.frozen_lake import lake_of

    lake = lake_of(state.map)
    tiles = np.frombuffer(lake.tiles.encode(), np.uint8).reshape(lake.rows, lake.columns)
    planes = np.zeros((3, lake.rows, lake.columns), np.int8)
    planes[0].flat[state.cell] = 1
    planes[1], planes[2] = tiles == ord("H"), tiles == ord("G")
    return planes


def _maze_map(game: Any, state: Any, player: int) -> NDArray[np.int8]:
    planes = np.zeros((3, len(game.grid.rows), len(game.grid.rows[0])), np.int8)
    planes[0][state.cell] = 1
    planes[1] = [[symbol == "#" for symbol in row] for row in game.grid.rows]
    planes[2][game.grid.goal] = 1
    return planes


def _maze_memory(game: Any, state: Any, player: int) -> NDArray[np.int8]:
    rows = np.zeros((game.history + 1, 9), np.int8)
    past = [(seen.walls, seen.action) for seen in reversed(state.history)]
    for row, (walls, action) in zip(rows, [(game.grid.walls[state.cell], -1), *past], strict=False):
        row[:4] = [walls >> bit & 1 for bit in range(4)]
        row[4:8] = [action == way for way in range(4)]
        row[8] = 1
    return rows


_PLANES: dict[str, Callable[[Any], Encode]] = {
    "breakthrough": lambda game: partial(_two_boards, game.rows, game.columns),
    "frozen_lake": lambda game: _lake,
    "maze": lambda game: partial(_maze_map if game.observed == "full" else _maze_memory, game),
    "tictactoe": lambda game: partial(_two_boards, 3, 3),
}
