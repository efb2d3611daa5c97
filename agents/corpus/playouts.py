"""Uniformly random games, remembered per starting point because drawing them is what the generator spends its time
on."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from nlrl.agents.language import GameLanguage
from nlrl.envs.game import Game

FORFEIT_SHARE = 0.01
"""How often a random game ends because the player to move answers nothing legal: games with language players do end
that way."""

LIBRARY_SIZE = 16
"""Random games kept for each (state, action); prompts draw from them, so a rare outcome is not lost to luck."""


class Playout(NamedTuple):
    """A finished random game from a state, seen by the player who was to move there."""

    actions: tuple[int, ...]
    text: str
    result: float
    line: str | None
    """The line that won it, whoever won."""


class Playouts:
    """A library of random games of one game, filled as it is asked."""

    def __init__(self, game: Game, language: GameLanguage, rng: random.Random):
        self.game = game
        self.language = language
        self._rng = rng
        self._library: dict[tuple[Any, int], list[Playout]] = {}

    def draw(self, state: Any, action: int, count: int, favour: tuple[float, float, float]) -> list[Playout]:
        """`count` games that start with `action`, their results (win, draw, loss) favoured by weights.

        The weights make the evidence of a prompt independent of how good the position is: what an aggregator must
        learn is to follow the evidence.
        """
        library = self._library.get((state, action))
        if library is None:
            library = self._library[(state, action)] = [self._play(state, action) for _ in range(LIBRARY_SIZE)]
        weights = [favour[1 - round(playout.result)] for playout in library]
        return self._rng.choices(library, weights, k=count)

    def _play(self, state: Any, action: int) -> Playout:
        game, player = self.game, self.game.current_player(state)
        actions, now = [action], game.apply(state, action).state
        while not game.is_terminal(now):
            if self._rng.random() < FORFEIT_SHARE:
                result = -1.0 if game.current_player(now) == player else 1.0
                return Playout(tuple(actions), self.language.forfeit(state, actions), result, None)
            actions.append(self._rng.choice(game.legal_actions(now)))
            now = game.apply(now, actions[-1]).state
        text = self.language.moves(state, actions)
        line = text.rsplit(" by ", 1)[1] if " won by " in text else None
        return Playout(tuple(actions), text, game.returns(now)[player], line)
