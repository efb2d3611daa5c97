"""OpenSpiel's tree search on our rules: what its bot needs of a game. Apart from `nlrl.envs.mcts`, so that games with a
search of their own do without OpenSpiel's import."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyspiel
from open_spiel.python.algorithms import mcts

from nlrl.envs.game import Game, Step
from nlrl.envs.random import Rng


def search(game: Game[Any], state: Any, simulations: int, rollouts: int, uct_c: float, solve: bool, rng: Rng) -> int:
    """The bot's move; it depends on nothing but the arguments."""
    seeded = np.random.RandomState(rng.bits() >> 32)
    judge = RandomRollouts(game, rollouts, Rng(rng.bits()))
    bot = mcts.MCTSBot(rules(game), uct_c, simulations, judge, solve, seeded)
    return int(bot.step(Walk(game, state)))


class RandomRollouts(mcts.RandomRolloutEvaluator):
    """The mean returns of uniformly random games from a leaf; no move is favoured beforehand."""

    def __init__(self, game: Game[Any], count: int, rng: Rng):
        super().__init__(n_rollouts=count, random_state=np.random.RandomState(0))  # never drawn from
        self._game, self._rng = game, rng

    def evaluate(self, state: Walk) -> list[float]:
        ends = [self._game.returns(self._play(state.position)) for _ in range(self.n_rollouts)]
        return [sum(returns) / len(ends) for returns in zip(*ends, strict=True)]

    def _play(self, state: Any) -> Any:
        game, rng = self._game, self._rng
        while legal := game.legal_actions(state):
            state = game.apply(state, rng.choice(legal), rng).state
        return state


def rules(game: Game[Any]) -> Any:
    """What the bot asks of a `pyspiel.Game`."""
    kind = SimpleNamespace(
        reward_model=pyspiel.GameType.RewardModel.TERMINAL, dynamics=pyspiel.GameType.Dynamics.SEQUENTIAL
    )
    return SimpleNamespace(get_type=lambda: kind, max_utility=lambda: game.value_range[1])


class Walk:
    """A game on its way, with the methods of `pyspiel.State` that searches use. Chance is a node of its own there."""

    __slots__ = ("_game", "_outcomes", "position")

    def __init__(self, game: Game[Any], position: Any, outcomes: tuple[Step[Any], ...] = ()):
        self._game, self.position, self._outcomes = game, position, outcomes

    def clone(self) -> Walk:
        return Walk(self._game, self.position, self._outcomes)

    def is_chance_node(self) -> bool:
        return bool(self._outcomes)

    def chance_outcomes(self) -> list[tuple[int, float]]:
        return [(index, outcome.probability) for index, outcome in enumerate(self._outcomes)]

    def is_terminal(self) -> bool:
        return not self._outcomes and self._game.is_terminal(self.position)

    def current_player(self) -> int:
        return pyspiel.PlayerId.CHANCE if self._outcomes else self._game.current_player(self.position)

    def legal_actions(self, player: int | None = None) -> list[int]:
        return list(range(len(self._outcomes))) if self._outcomes else list(self._game.legal_actions(self.position))

    def apply_action(self, action: int) -> None:
        outcomes = (self._outcomes[action],) if self._outcomes else self._game.transitions(self.position, action)
        certain = len(outcomes) == 1
        self.position = outcomes[0].state if certain else self.position
        self._outcomes = () if certain else outcomes

    def returns(self) -> list[float]:
        return list(self._game.returns(self.position))
