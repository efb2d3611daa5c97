"""Tic-Tac-Toe in a batch: encoded states are the two bitboards, (n, 2) int64.

See `nlrl.envs.tictactoe` for the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlrl.envs.batched import streams
from nlrl.envs.batched.batch import Actions, BatchedGame, Bools
from nlrl.envs.jit import compiled
from nlrl.envs.tictactoe import TicTacToeState, won_lines

Boards = NDArray[np.int64]

_FULL = 511
_IS_SET = np.array([[board >> cell & 1 for cell in range(9)] for board in range(512)], dtype=np.bool_)
"""(512, 9)"""
_COUNT = _IS_SET.sum(axis=1)
_NTH = np.array([np.flatnonzero(bits).tolist() + [-1] * (9 - bits.sum()) for bits in _IS_SET], dtype=np.int8)
"""(512, 9) the k-th cell of each bitboard."""
_WON = np.array([bool(won_lines(TicTacToeState(board, 0), 0)) for board in range(512)])


@compiled
def _choose(boards: Boards, moves: streams.Streams, out: Actions) -> None:
    for i in range(len(out)):
        free = _FULL ^ (boards[i, 0] | boards[i, 1])
        out[i] = _NTH[free, streams.below(moves, i, _COUNT[free])]


@compiled
def _play(boards: Boards, actions: Actions, rewards: NDArray[np.float64], terminated: Bools) -> int:
    for i, action in enumerate(actions):
        if not 0 <= action < 9 or (boards[i, 0] | boards[i, 1]) >> action & 1:
            return i
    for i, action in enumerate(actions):
        taken = boards[i, 0] | boards[i, 1]
        player = _COUNT[taken] & 1
        boards[i, player] |= 1 << action
        if _WON[boards[i, player]]:
            rewards[i, player], rewards[i, 1 - player] = 1.0, -1.0
            terminated[i] = True
        elif taken | 1 << action == _FULL:
            terminated[i] = True
    return -1


class TicTacToeBatch(BatchedGame[TicTacToeState]):
    """Games of `nlrl.envs.tictactoe.TicTacToe`."""

    def legal_mask(self) -> Bools:
        return _IS_SET[_FULL ^ self._taken()]

    def current_players(self) -> NDArray[np.int8]:
        return (_COUNT[self._taken()] & 1).astype(np.int8)

    def random_actions(self) -> Actions:
        out = np.empty(self.size, dtype=np.int64)
        _choose(self._codes, self._moves, out)
        return out

    def _taken(self) -> NDArray[Any]:
        return self._codes[:, 0] | self._codes[:, 1]

    def _encode(self, states: Sequence[TicTacToeState]) -> Boards:
        return np.array(states, dtype=np.int64).reshape(-1, 2)

    def _decode(self, codes: NDArray[Any]) -> list[TicTacToeState]:
        return [TicTacToeState(o, x) for o, x in codes.tolist()]

    def _advance(self, actions: Actions, rewards: NDArray[np.float64], terminated: Bools) -> int:
        return _play(self._codes, actions, rewards, terminated)
