"""Which positions the corpus is written about, and which it never sees."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

from nlrl.agents.corpus.playouts import random_step
from nlrl.agents.language import GameLanguage, language_of
from nlrl.envs import make_from_spec
from nlrl.envs.game import Game
from nlrl.envs.random import Rng, derive_seed
from nlrl.errors import NLRLError

HELD_OUT_SHARE = 0.1
FIRST_HELD_OUT_PLY = 3
"""Earlier positions of a game with two players are everybody's: every game goes through some of them."""
ENUMERATED = 20_000
"""Non-terminal states that are listed; a larger game's are drawn from random games."""
NEAR, TRIES = 12, 8
"""Steps from the end of a walk, and walks tried, for positions near the goal."""


def states_by_ply(spec: str) -> dict[int, tuple[Any, ...]]:
    """Every reachable non-terminal state of a small game, by the fewest moves that lead to it.

    Raises:
        NLRLError: there are more than `ENUMERATED`.
    """
    plies = _listed(spec)
    if plies is None:
        raise NLRLError(f"{spec} has more than {ENUMERATED:,} states: they are not listed")
    return plies


@lru_cache(maxsize=256)
def _listed(spec: str) -> dict[int, tuple[Any, ...]] | None:
    game = make_from_spec(spec)
    layer, plies, ply, seen = list(game.initial_states()), {}, 0, 0
    known = set(layer)
    while layer:
        alive = [state for state in layer if not game.is_terminal(state)]
        seen += len(alive)
        if seen > ENUMERATED:
            return None
        if alive:
            plies[ply] = tuple(alive)
        successors = {step.state: None for s in alive for a in game.legal_actions(s) for step in game.transitions(s, a)}
        layer, ply = [state for state in successors if state not in known], ply + 1
        known.update(layer)
    return plies


def is_held_out(game: Game, state: Any, ply: int) -> bool:
    """Whether no pretraining prompt may be about this state: a fixed tenth of all, told apart by what prompts show."""
    return _is_held_out(language_of(game), state, ply)


def _is_held_out(language: GameLanguage, state: Any, ply: int) -> bool:
    if ply < FIRST_HELD_OUT_PLY and language.game.num_players > 1:
        return False
    return derive_seed("held-out", language.board(state)) / 2**64 < HELD_OUT_SHARE


class StateSampler:
    """Draws states: a ply in proportion to the square root of its number of states, then a state of that ply. Of games
    too large to list: a position of a random game (`GameLanguage.wander`).

    Args:
        held_out: draw from the held-out states instead of from the others.

    Raises:
        NLRLError: there are none to draw.
    """

    def __init__(self, game: Game, held_out: bool = False):
        self._game, self._language, self._held_out = game, language_of(game), held_out
        listed = _listed(game.spec)
        fitting = [[s for s in states if self._fits(s, ply)] for ply, states in (listed or {}).items()]
        self._plies = [states for states in fitting if states]
        self._weights = [len(states) ** 0.5 for states in self._plies]
        self.is_listed = listed is not None
        if self.is_listed and not self._plies:
            raise NLRLError(f"{game.spec}: none of its few positions is {'' if held_out else 'not '}held out")

    def draw(self, rng: random.Random) -> Any:
        """One non-terminal state."""
        if not self.is_listed:
            return self._draw_from_games(rng)
        return rng.choice(rng.choices(self._plies, self._weights)[0])

    def all(self) -> list[Any]:
        """Every state it can draw, in a fixed order; empty for a game too large to list."""
        return [state for states in self._plies for state in states]

    def draw_near_the_goal(self, rng: random.Random) -> Any:
        """In a game for one: a position from the last `NEAR` steps of a random walk that arrived, if one soon does.

        Walks on from there often arrive, so that what they score is not always the worst.
        """
        for _ in range(TRIES):
            positions, end = self._random_game(rng)
            if positions and self._language.score_at(end, len(positions)) > -1:
                state = rng.choice(positions[-NEAR:])
                if self._fits(state, 0):
                    return state
        return self.draw(rng)

    def _draw_from_games(self, rng: random.Random) -> Any:
        while True:
            positions, _ = self._random_game(rng)
            for _ in positions:
                ply = rng.randrange(len(positions))
                if self._fits(positions[ply], ply):
                    return positions[ply]

    def _random_game(self, rng: random.Random) -> tuple[list[Any], Any]:
        """The positions of a random game in which there was a move to make, and where it ended."""
        game, choose = self._game, self._language.wander(rng)
        state, positions = game.initial_state(Rng(rng.getrandbits(64))), []
        while not game.is_terminal(state) and len(positions) < game.max_length:
            positions.append(state)
            state = random_step(game, state, choose(state), rng)
        return positions, state

    def _fits(self, state: Any, ply: int) -> bool:
        return _is_held_out(self._language, state, ply) == self._held_out
