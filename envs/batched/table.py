"""Any game of few states in a batch: encoded states are rows of its `StateTable`, (n,) intp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nlrl.envs.batched import streams
from nlrl.envs.batched.batch import Actions, BatchedGame, Bools
from nlrl.envs.game import Game
from nlrl.envs.jit import compiled
from nlrl.envs.state_table import StateTable
from nlrl.errors import NLRLError

State = TypeVar("State")
Rows = NDArray[np.intp]

MAX_STATES = 20_000
"""Of larger games the table would take longer to make than it saves."""


@compiled
def _choose(rows: Rows, first_pair: Rows, pair_action: Rows, moves: streams.Streams, out: Actions) -> None:
    for i, row in enumerate(rows):
        first = first_pair[row]
        out[i] = pair_action[first + streams.below(moves, i, first_pair[row + 1] - first)]


@compiled
def _draw(probability: NDArray[np.float64], total: Any, chance: streams.Streams, i: int) -> int:
    """`Rng.weighted`, step by step, so that rounding is the same too."""
    if len(probability) == 1:
        return 0
    target = streams.uniform(chance, i) * total
    for k in range(len(probability)):
        target -= probability[k]
        if target < 0:
            return k
    return len(probability) - 1


@compiled
def _outcomes(
    rows: Rows,
    actions: Actions,
    pair_of: NDArray[np.int32],
    first_outcome: Rows,
    probability: NDArray[np.float64],
    total: NDArray[np.float64],
    chance: streams.Streams,
    out: Rows,
) -> int:
    """Fills `out` (n,) with the outcome drawn in each game, or returns the first game whose action is illegal."""
    for i, action in enumerate(actions):
        if not 0 <= action < pair_of.shape[1] or pair_of[rows[i], action] < 0:
            return i
    for i, action in enumerate(actions):
        pair = pair_of[rows[i], action]
        first = first_outcome[pair]
        out[i] = first + _draw(probability[first : first_outcome[pair + 1]], total[pair], chance, i)
    return -1


class TableBatch(BatchedGame[State]):
    """Games whose reachable states all fit a table.

    Raises:
        NLRLError: the game has more than `MAX_STATES` reachable states, or draws chance in a way of its own.
    """

    def _prepare(self) -> None:
        table = self._table = StateTable(self.game, MAX_STATES)
        _require_usual_draws(self.game, chance=len(table.outcome_next) > len(table.pair_state))
        pairs = np.arange(len(table.pair_state))
        self._pair_of = np.full((len(table.states), self.num_actions), -1, dtype=np.int32)
        self._pair_of[table.pair_state, table.pair_action] = pairs
        self._first_outcome = np.searchsorted(table.outcome_pair, np.arange(len(pairs) + 1))
        chances = np.split(table.probability, self._first_outcome[1:-1])
        self._total = np.array([sum(chance.tolist()) for chance in chances])
        self._is_terminal = table.first_pair[:-1] == table.first_pair[1:]
        super()._prepare()

    def legal_mask(self) -> Bools:
        return self._pair_of[self._codes] >= 0

    def current_players(self) -> NDArray[np.int8]:
        return self._table.player[self._codes]

    def random_actions(self) -> Actions:
        out = np.empty(self.size, dtype=np.int64)
        _choose(self._codes, self._table.first_pair, self._table.pair_action, self._moves, out)
        return out

    def _encode(self, states: Sequence[State]) -> Rows:
        return np.array([self._table.row_of(state) for state in states], dtype=np.intp)

    def _decode(self, codes: NDArray[Any]) -> list[State]:
        return [self._table.states[row] for row in codes.tolist()]

    def _advance(self, actions: Actions, rewards: NDArray[np.float64], terminated: Bools) -> int:
        table, outcome = self._table, np.empty(self.size, dtype=np.intp)
        illegal = _outcomes(
            self._codes,
            actions,
            self._pair_of,
            self._first_outcome,
            table.probability,
            self._total,
            self._chance,
            outcome,
        )
        if illegal < 0:
            self._codes = table.outcome_next[outcome]
            rewards[:] = table.reward[outcome, None]
            rewards[:, 1:] *= -1
            terminated[:] = self._is_terminal[self._codes]
        return illegal


def _require_usual_draws(game: Game[Any], chance: bool) -> None:
    """Kernels draw as `Game.initial_state` and `Game.apply` do; a game that overrides those may not."""
    kind = type(game)
    if kind.initial_state is not Game.initial_state or (chance and kind.apply is not Game.apply):
        raise NLRLError(f"{game.spec} draws chance in a way of its own, which a table does not know")
