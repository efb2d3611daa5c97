"""Monte Carlo tree search as an opponent: OpenSpiel's bot on our rules.

1. The bot (`open_spiel.python.algorithms.mcts`: UCT with an optional solver that backs up proven results) is
   OpenSpiel's own. It walks a `Walk`, which has the few methods of `pyspiel.State` that it calls.
2. Random rollouts run on our rules, without the way through OpenSpiel's objects.
3. Each move gets a bot of its own, seeded from that move's generator. What is played depends on nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyspiel
from open_spiel.python.algorithms import mcts

from nlrl.envs.game import Game, Step
from nlrl.envs.opponent import is_number, legal_moves, require_two_players, sampled_only
from nlrl.envs.random import Rng
from nlrl.errors import NLRLError


class MCTSOpponent:
    """`simulations` walks down the tree a move, each new leaf judged by the mean of `rollouts` random games.

    Args:
        simulations: at least 2 (the first looks at the root alone).
        rollouts: at least 1.
        uct_c: how much rarely tried moves are favoured.
        solve: back up proven results, and stop once the root's is proven.

    Raises:
        NLRLError: an argument is out of range, or the game is for one player.
    """

    exact = False

    def __init__(self, game: Game[Any], simulations: int, rollouts: int, uct_c: float = 1.0, solve: bool = True):
        self.name = _name(simulations, rollouts, uct_c, solve)
        for what, value, least in (("simulations", simulations, 2), ("rollouts", rollouts, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise NLRLError(f"{self.name!r}: {what} must be an integer of at least {least}, not {value!r}")
        if not is_number(uct_c) or not 0 <= uct_c < math.inf:
            raise NLRLError(f"{self.name!r}: uct_c must be a number of at least 0, not {uct_c!r}")
        if not isinstance(solve, bool):
            raise NLRLError(f"{self.name!r}: solve must be True or False, not {solve!r}")
        require_two_players(game, self.name)
        self._game, self._simulations, self._rollouts = game, simulations, rollouts
        self._uct_c, self._solve = float(uct_c), solve

    def choose(self, states: Sequence[Any], rngs: Sequence[Rng]) -> list[int]:
        return [self._search(state, rng) for state, rng in zip(states, rngs, strict=True)]

    def policy(self, state: Any) -> dict[int, float]:
        raise sampled_only(self.name)

    def prepare(self, states: Sequence[Any]) -> None:
        pass

    def __repr__(self) -> str:
        return f"<opponent {self.name}>"

    def _search(self, state: Any, rng: Rng) -> int:
        legal_moves(self._game, state)
        seeded = np.random.RandomState(rng.bits() >> 32)
        judge = RandomRollouts(self._game, self._rollouts, Rng(rng.bits()))
        bot = mcts.MCTSBot(rules(self._game), self._uct_c, self._simulations, judge, self._solve, seeded)
        return int(bot.step(Walk(self._game, state)))


def _name(simulations: Any, rollouts: Any, uct_c: Any, solve: Any) -> str:
    more = ("" if uct_c == 1 else f",uct_c={uct_c}") + ("" if solve is True else f",solve={solve}")
    return f"mcts({simulations},{rollouts}{more})"


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
