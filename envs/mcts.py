"""Monte Carlo tree search as an opponent: OpenSpiel's bot on our rules.

1. The bot (`open_spiel.python.algorithms.mcts`: UCT with an optional solver that backs up proven results) is
   OpenSpiel's own. It walks a `Walk`, which has the few methods of `pyspiel.State` that it calls
   (`nlrl.envs.openspiel_search`).
2. Random rollouts run on our rules, without the way through OpenSpiel's objects.
3. Each move gets a bot of its own, seeded from that move's generator. What is played depends on nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nlrl.envs.game import Game
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
        from nlrl.envs.openspiel_search import search

        legal_moves(self._game, state)
        return search(self._game, state, self._simulations, self._rollouts, self._uct_c, self._solve, rng)


def _name(simulations: Any, rollouts: Any, uct_c: Any, solve: Any) -> str:
    more = ("" if uct_c == 1 else f",uct_c={uct_c}") + ("" if solve is True else f",solve={solve}")
    return f"mcts({simulations},{rollouts}{more})"
