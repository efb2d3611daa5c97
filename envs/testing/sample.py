"""Random games of the game under test, played once and looked at by every check."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from nlrl.envs.game import Game
from nlrl.envs.random import Rng
from nlrl.envs.testing.report import require


class Playout(NamedTuple):
    """One random game, by its own rules or cut at `max_length`."""

    states: tuple[Any, ...]
    """Every state, from the initial one to the last."""
    actions: tuple[int, ...]
    """The action played in each state but the last."""
    totals: tuple[float, ...]
    """The sum of rewards of each player."""


class Sample:
    """The game that `make` gives, and `games` random games of it."""

    def __init__(self, make: Callable[[], Game[Any]], games: int, seed: int, workers: int):
        self.make, self.games, self.seed, self.workers = make, games, seed, workers
        self.generators = global_generators()

    @cached_property
    def game(self) -> Game[Any]:
        return self.make()

    @cached_property
    def playouts(self) -> tuple[Playout, ...]:
        return tuple(_play(self.game, Rng("check_game", self.seed, number)) for number in range(self.games))

    def states(self) -> Iterator[Any]:
        """Every state of the sample, once."""
        return iter(dict.fromkeys(state for playout in self.playouts for state in playout.states))

    def decisions(self) -> Iterator[tuple[Any, int]]:
        """Every state with an action played there, once."""
        pairs = ((s, a) for playout in self.playouts for s, a in zip(playout.states, playout.actions, strict=False))
        return iter(dict.fromkeys(pairs))

    def ongoing(self) -> Iterator[Any]:
        """Every state of the sample that is not terminal, once."""
        return (state for state in self.states() if not self.game.is_terminal(state))


def _play(game: Game[Any], rng: Rng) -> Playout:
    state = game.initial_state(rng)
    states, actions, totals = [_kept(state)], [], [0.0] * game.num_players
    while len(actions) < game.max_length and (legal := game.legal_actions(state)):
        actions.append(rng.choice(legal))
        step = game.apply(state, actions[-1], rng)
        totals = [total + reward for total, reward in zip(totals, step.rewards, strict=False)]
        state = step.state
        states.append(_kept(state))
    return Playout(tuple(states), tuple(actions), tuple(totals))


def _kept(state: Any) -> Any:
    """A copy that later play cannot change, should the game change its states."""
    kept = pickle.loads(pickle.dumps(state))
    require(kept == state and hash(kept) == hash(state), "a state must equal its pickled copy and hash alike", state)
    return kept


def global_generators() -> tuple[Any, ...]:
    """The state of Python's and numpy's global generators."""
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, tuple(keys), *rest
