"""What an oracle answers about a state, and values that lie in arrays. `nlrl.envs.oracle` says what the values mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Generic, TypeVar

import numpy as np

from nlrl.envs.game import Game
from nlrl.envs.state_table import Floats, StateTable

State = TypeVar("State", bound=Hashable)
TOLERANCE = 1e-9
"""Values closer than this are equal: sums of a few hundred probabilities differ by less."""


class Oracle(ABC, Generic[State]):
    """Exact values of one way to play."""

    game: Game[State]

    @abstractmethod
    def q_values(self, state: State) -> dict[int, float]:
        """Legal action -> expected return from here on, from the mover's view. Empty in a terminal state."""

    @abstractmethod
    def value(self, state: State) -> float:
        """Expected return from here on, from the mover's view. 0 in a terminal state."""

    def best_actions(self, state: State) -> tuple[int, ...]:
        """The legal actions of the highest value, in increasing order; empty in a terminal state."""
        q_values = self.q_values(state)
        best = max(q_values.values(), default=0.0)
        return tuple(action for action, q in q_values.items() if q >= best - TOLERANCE)

    def regret(self, state: State, action: int) -> float:
        """How much less than the best action this one is worth (at least 0).

        Raises:
            ValueError: the action is not legal.
        """
        q_values = self.q_values(state)
        if action not in q_values:
            raise ValueError(f"{self.game.spec}: action {action!r} is illegal in {state}; legal: {tuple(q_values)}")
        return max(q_values.values()) - q_values[action]

    def at_horizon(self, steps_left: int) -> Oracle[State]:
        """The same with `steps_left` actions left before the game is cut at `max_length`.

        By default the oracle itself, which is right where every game ends by its own rules.
        """
        return self

    def distance(self, state: State) -> int | None:
        """Actions to the end under best play when the side that gains by ending hurries and the other delays.

        None where it is unknown, or where no end can be forced.
        """
        return None


class Values(Oracle[State]):
    """Values of all states (`v`, shape (states,)) and pairs (`q`, shape (pairs,)) of a table, from the mover's view.

    They are for one number of actions left; other numbers are asked of the `TabularOracle` that made them.
    """

    def __init__(self, table: StateTable[State], v: Floats, q: Floats):
        self.game, self.table, self.v, self.q = table.game, table, v, q

    def value(self, state: State) -> float:
        return float(self.v[self.table.row_of(state)])

    def q_values(self, state: State) -> dict[int, float]:
        pairs = self.table.pairs_of(state)
        return dict(zip(self.table.pair_action[pairs].tolist(), self.q[pairs].tolist(), strict=True))

    def at_horizon(self, steps_left: int) -> Oracle[State]:
        raise NotImplementedError("values of one number of actions left: ask TabularOracle.at_horizon or policy_value")

    def at_start(self, player: int) -> float:
        """The mean value of the initial states, from `player`'s view."""
        initial = self.table.initial
        return float(np.mean(self.v[initial] * np.where(self.table.player[initial] == player, 1.0, -1.0)))
