"""Breakthrough in a batch: encoded states are black's and white's bitboards and the player to move, (n, 3) uint64.

The kernels work on *origins*: for each direction (towards a lower column, straight, towards a higher column) the pawns
that may move there, as bits. See `nlrl.envs.breakthrough` for the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nlrl.envs.batched import streams
from nlrl.envs.batched.batch import Actions, BatchedGame, Bools
from nlrl.envs.breakthrough import Breakthrough, BreakthroughState
from nlrl.envs.jit import compiled

Boards = NDArray[np.uint64]

# Numba turns uint64 with a signed integer into a float, so everything that meets a bitboard is an unsigned word.
_0, _1, _2, _4, _56 = (np.uint64(n) for n in (0, 1, 2, 4, 56))
_PAIRS, _NIBBLES, _BYTES, _ONES = (np.uint64(int(word * 8, 16)) for word in ("55", "33", "0f", "01"))


class Geometry(NamedTuple):
    """A board's size."""

    num_actions: int
    columns: np.uint64
    full: np.uint64
    """All cells."""
    first_column: np.uint64
    last_column: np.uint64
    top_row: np.uint64
    bottom_row: np.uint64


def geometry(rows: int, columns: int) -> Geometry:
    top = (1 << columns) - 1
    first = sum(1 << row * columns for row in range(rows))
    words = columns, (1 << rows * columns) - 1, first, first << columns - 1, top, top << (rows - 1) * columns
    return Geometry(3 * rows * columns, *map(np.uint64, words))


@compiled
def _count(bits: np.uint64) -> Any:
    """Set bits (Warren, Hacker's Delight, 5-1)."""
    bits -= (bits >> _1) & _PAIRS
    bits = (bits & _NIBBLES) + ((bits >> _2) & _NIBBLES)
    return np.int64((((bits + (bits >> _4)) & _BYTES) * _ONES) >> _56)


@compiled
def _shifted(bits: np.uint64, player: np.uint64, by: np.uint64) -> np.uint64:
    """`by` cells ahead for the player: black (0) moves towards higher bits."""
    return bits >> by if player == _1 else bits << by


@compiled
def _origins(
    own: np.uint64, enemy: np.uint64, player: np.uint64, size: Geometry
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """The pawns of `player` that may move towards a lower column, straight and towards a higher one."""
    free, open_ = size.full & ~(own | enemy), size.full & ~own
    lower = size.columns + _1 if player == _1 else size.columns - _1
    higher = size.columns - _1 if player == _1 else size.columns + _1
    back = player ^ _1
    return (
        _shifted(open_ & ~size.last_column, back, lower) & own,
        _shifted(free, back, size.columns) & own,
        _shifted(open_ & ~size.first_column, back, higher) & own,
    )


@compiled
def _of_game(boards: Boards, i: int, size: Geometry) -> tuple[np.uint64, np.uint64, np.uint64]:
    player = boards[i, 2]
    return _origins(boards[i, player], boards[i, player ^ _1], player, size)


@compiled
def _mask(boards: Boards, size: Geometry, out: Bools) -> None:
    for i in range(len(out)):
        origins = _of_game(boards, i, size)
        for action in range(out.shape[1]):
            out[i, action] = (origins[action % 3] >> np.uint64(action // 3)) & _1 != _0


@compiled
def _choose(boards: Boards, size: Geometry, moves: streams.Streams, out: Actions) -> None:
    for i in range(len(out)):
        lower, straight, higher = _of_game(boards, i, size)
        k = streams.below(moves, i, _count(lower) + _count(straight) + _count(higher))
        pawns = lower | straight | higher
        while True:  # to the k-th action in increasing order: by pawn, then by direction
            pawn = pawns & (~pawns + _1)
            here = ((lower & pawn) != _0) + ((straight & pawn) != _0) + ((higher & pawn) != _0)
            if k < here:
                break
            k -= here
            pawns ^= pawn
        direction = 0
        for origins in (lower, straight, higher):
            if origins & pawn != _0:
                if k == 0:
                    break
                k -= 1
            direction += 1
        out[i] = 3 * _count(pawn - _1) + direction


@compiled
def _play(boards: Boards, actions: Actions, size: Geometry, rewards: NDArray[np.float64], terminated: Bools) -> int:
    for i, action in enumerate(actions):
        if not 0 <= action < size.num_actions:
            return i
        if (_of_game(boards, i, size)[action % 3] >> np.uint64(action // 3)) & _1 == _0:
            return i
    for i, action in enumerate(actions):
        player, cell = boards[i, 2], np.uint64(action // 3)
        ahead = cell - size.columns if player == _1 else cell + size.columns
        target = _1 << (ahead + np.uint64(action % 3) - _1)
        own = boards[i, player] ^ (_1 << cell) | target
        enemy = boards[i, player ^ _1] & ~target
        boards[i, player], boards[i, player ^ _1], boards[i, 2] = own, enemy, player ^ _1
        goal = size.top_row if player == _1 else size.bottom_row
        if target & goal != _0 or enemy == _0:
            rewards[i, player], rewards[i, player ^ _1] = 1.0, -1.0
            terminated[i] = True
    return -1


class BreakthroughBatch(BatchedGame[BreakthroughState]):
    """Games of `nlrl.envs.breakthrough.Breakthrough`, of any size."""

    game: Breakthrough

    def _prepare(self) -> None:
        super()._prepare()
        self._size = geometry(self.game.rows, self.game.columns)

    def legal_mask(self) -> Bools:
        out = np.empty((self.size, self.num_actions), dtype=np.bool_)
        _mask(self._codes, self._size, out)
        return out

    def current_players(self) -> NDArray[np.int8]:
        return self._codes[:, 2].astype(np.int8)

    def random_actions(self) -> Actions:
        out = np.empty(self.size, dtype=np.int64)
        _choose(self._codes, self._size, self._moves, out)
        return out

    def _encode(self, states: Sequence[BreakthroughState]) -> Boards:
        return np.array(states, dtype=np.uint64).reshape(-1, 3)

    def _decode(self, codes: NDArray[Any]) -> list[BreakthroughState]:
        return [BreakthroughState(black, white, player) for black, white, player in codes.tolist()]

    def _advance(self, actions: Actions, rewards: NDArray[np.float64], terminated: Bools) -> int:
        return _play(self._codes, actions, self._size, rewards, terminated)
