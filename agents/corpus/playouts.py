"""Uniformly random games, remembered per starting point because drawing them is what the generator spends its time
on."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from nlrl.agents.language import NO_MOVE, GameLanguage, Line
from nlrl.envs.game import Game

FORFEIT_SHARE = 0.01
"""How often, a move, a random game ends because the player to move answers nothing legal: games with language players
do end that way. Games longer than `FORFEIT_LENGTH` end so no more often than games of that length."""
FORFEIT_LENGTH = 9

EVENLY = (1.0, 1.0, 1.0)
"""Games drawn as they come."""
LIBRARY_SIZE = 16
"""Random games kept for each (state, action); prompts draw from them, so a rare outcome is not lost to luck."""
SMALL_LIBRARY = 8
"""The same for games with so many states that a library is hardly used again."""
LIBRARIES = 20_000
"""(state, action) pairs that are remembered; a larger game forgets them and begins anew."""


class Playout(NamedTuple):
    """A finished random game from a state, seen by the player who was to move there."""

    text: str
    score: float
    """With two decimals, as texts show it."""
    aim: str | None
    """What it was won by, whoever won."""


def random_step(game: Game, state: Any, action: int, rng: random.Random) -> Any:
    """The state after an action, drawn where chance has a say."""
    outcomes = game.transitions(state, action)
    if len(outcomes) == 1:
        return outcomes[0].state
    return rng.choices(outcomes, [outcome.probability for outcome in outcomes])[0].state


class Playouts:
    """A library of random games of one game, filled as it is asked; `size` games for each (state, action)."""

    def __init__(self, game: Game, language: GameLanguage, rng: random.Random, size: int = LIBRARY_SIZE):
        self.game, self.size = game, size
        self.language = language
        self._rng = rng
        self._fails = FORFEIT_SHARE * min(1.0, FORFEIT_LENGTH / game.max_length)
        self._library: dict[tuple[Any, int], list[Playout]] = {}

    def draw(self, state: Any, action: int, count: int, favour: tuple[float, float, float]) -> list[Playout]:
        """`count` games that start with `action`, their results (win, draw, loss) favoured by weights.

        The weights make the evidence of a prompt independent of how good the position is: what an aggregator must
        learn is to follow the evidence.
        """
        library = self._library.get((state, action))
        if library is None:
            if len(self._library) >= LIBRARIES:
                self._library.clear()
            longest = self._longest()
            library = [self._play(state, action, longest) for _ in range(self.size)]
            self._library[(state, action)] = library
        return self._rng.choices(library, self._weights(library, favour), k=count)

    def _weights(self, library: list[Playout], favour: tuple[float, float, float]) -> list[float]:
        """Of each game. Random walks rarely arrive: where a result is favoured, the walks that did count together as
        much as its weight says, and so do those that did not."""
        if self.game.num_players > 1 or favour == EVENLY:
            return [favour[1 - round(playout.score)] for playout in library]
        arrived = sum(playout.score > -1 for playout in library)
        win, _, loss = favour
        good, bad = win / max(arrived, 1), loss / max(len(library) - arrived, 1)
        return [good if playout.score > -1 else bad for playout in library]

    def _longest(self) -> int:
        """Actions after which a game is cut. A walk is met at any step of it, so any number may be left."""
        longest = self.game.max_length
        if self.game.num_players == 1 and self._rng.random() < 0.5:
            return self._rng.randint(1, longest)
        return longest

    def _play(self, state: Any, action: int, longest: int) -> Playout:
        game, rng = self.game, self._rng
        states, actions, forfeited = [state, random_step(game, state, action, rng)], [action], False
        while not game.is_terminal(states[-1]) and len(actions) < longest:
            if rng.random() < self._fails:
                lost = game.invalid_step(states[-1])
                if lost is None or rng.random() < 0.5:
                    forfeited = True
                    break
                actions.append(NO_MOVE)
                states.append(lost.state)
                continue
            actions.append(self.language.random_action(states[-1], actions[-1], rng))
            states.append(random_step(game, states[-1], actions[-1], rng))
        line = Line(tuple(states), tuple(actions))
        score = round(self.language.score(line, game.current_player(state), forfeited), 2)
        return Playout(self.language.told(line, forfeited), score, None if forfeited else self.language.aim_of(line))
