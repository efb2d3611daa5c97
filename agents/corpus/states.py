"""Which positions the corpus is written about, and which it never sees."""

from __future__ import annotations

import random
from collections import defaultdict
from functools import cache
from typing import Any

from nlrl.envs import make_from_spec
from nlrl.envs.game import Game
from nlrl.envs.random import derive_seed

HELD_OUT_SHARE = 0.1
FIRST_HELD_OUT_PLY = 3


@cache
def states_by_ply(spec: str) -> dict[int, tuple[Any, ...]]:
    """Every reachable non-terminal state of a small game, by the number of moves that lead to it."""
    game = make_from_spec(spec)
    layer, plies, ply = list(game.initial_states()), {}, 0
    while layer:
        alive = [state for state in layer if not game.is_terminal(state)]
        if alive:
            plies[ply] = tuple(alive)
        successors = {step.state: None for s in alive for a in game.legal_actions(s) for step in game.transitions(s, a)}
        layer, ply = list(successors), ply + 1
    return plies


def is_held_out(game: Game, state: Any, ply: int) -> bool:
    """Whether no pretraining prompt may be about this state (a fixed tenth of the states from ply 3 on)."""
    if ply < FIRST_HELD_OUT_PLY:
        return False
    return derive_seed("held-out", game.to_text(state)) / 2**64 < HELD_OUT_SHARE


class StateSampler:
    """Draws states: a ply in proportion to the square root of its number of states, then a state of that ply.

    Args:
        held_out: draw from the held-out states instead of from the others.
    """

    def __init__(self, game: Game, held_out: bool = False):
        plies: dict[int, list[Any]] = defaultdict(list)
        for ply, states in states_by_ply(game.spec).items():
            plies[ply] = [state for state in states if is_held_out(game, state, ply) == held_out]
        self._plies = [states for states in plies.values() if states]
        self._weights = [len(states) ** 0.5 for states in self._plies]

    def draw(self, rng: random.Random) -> Any:
        """One non-terminal state."""
        return rng.choice(rng.choices(self._plies, self._weights)[0])

    def all(self) -> list[Any]:
        """Every state it can draw, in a fixed order."""
        return [state for states in self._plies for state in states]
