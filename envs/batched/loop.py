"""Any game in a batch: a Python loop over the scalar rules, (n,) objects. For games too large for tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nlrl.envs.batched.batch import Actions, BatchedGame, Bools
from nlrl.envs.random import Rng

State = TypeVar("State")


class LoopBatch(BatchedGame[State]):
    """Games of any rules."""

    def _prepare(self) -> None:
        """No tables."""

    def _seed(self, seed: int | str) -> None:
        self._moves = [Rng("batched", seed, i, "moves") for i in range(self.size)]
        self._chance = [Rng("batched", seed, i, "chance") for i in range(self.size)]

    def _draw_starts(self, games: NDArray[np.intp]) -> NDArray[Any]:
        return self._encode([self.game.initial_state(self._chance[i]) for i in games])

    def legal_mask(self) -> Bools:
        out = np.zeros((self.size, self.num_actions), dtype=np.bool_)
        for mask, state in zip(out, self._codes, strict=True):
            mask[list(self.game.legal_actions(state))] = True
        return out

    def current_players(self) -> NDArray[np.int8]:
        return np.array([self.game.current_player(state) for state in self._codes], dtype=np.int8)

    def random_actions(self) -> Actions:
        legal = map(self.game.legal_actions, self._codes)
        return np.array([rng.choice(actions) for rng, actions in zip(self._moves, legal, strict=True)])

    def _encode(self, states: Sequence[State]) -> NDArray[Any]:
        out = np.empty(len(states), dtype=object)
        for i, state in enumerate(states):  # at once, NumPy would make columns of the states' fields
            out[i] = state
        return out

    def _decode(self, codes: NDArray[Any]) -> list[State]:
        return codes.tolist()

    def _advance(self, actions: Actions, rewards: NDArray[np.float64], terminated: Bools) -> int:
        chosen = actions.tolist()
        for i, (state, action) in enumerate(zip(self._codes, chosen, strict=True)):
            if action not in self.game.legal_actions(state):
                return i
        for i, (state, action) in enumerate(zip(self._codes, chosen, strict=True)):
            step = self.game.apply(state, action, self._chance[i])
            self._codes[i], rewards[i] = step.state, step.rewards
            terminated[i] = self.game.is_terminal(step.state)
        return -1
