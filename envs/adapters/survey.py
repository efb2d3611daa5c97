"""What an adapter must declare about a game and the rules do not say outright, found by looking at its first states.

Libraries want to know beforehand whether a game has chance, hides something, or how long its texts get. The first
`LIMIT` states from the start, breadth first, answer that: all of them in a small game, the opening of a large one.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from nlrl.envs.game import Game

LIMIT = 256


class Survey(NamedTuple):
    """Facts about the states that were looked at."""

    max_outcomes: int
    """Most outcomes that any action has; 1 means that actions leave nothing to chance."""
    hides: bool
    """A player cannot tell two of the states apart."""
    text_size: tuple[int, int]
    """(lines, columns) that hold every observation text seen, doubled where texts differ in size."""
    characters: frozenset[str]
    """All characters of the texts."""


_surveys: dict[tuple[type, str], Survey] = {}


def survey(game: Game[Any]) -> Survey:
    """The facts about `game`, looked up once per class and spec."""
    key = (type(game), game.spec)
    if key not in _surveys:
        states, max_outcomes = _first_states(game)
        _surveys[key] = _describe(game, states, max_outcomes)
    return _surveys[key]


def _first_states(game: Game[Any]) -> tuple[list[Any], int]:
    initial = list(game.initial_states())[:LIMIT]
    seen, waiting, most = set(initial), deque(initial), 1
    while waiting:
        state = waiting.popleft()
        for action in game.legal_actions(state):
            steps = game.transitions(state, action)
            most = max(most, len(steps))
            fresh = [step.state for step in steps if step.state not in seen] if len(seen) < LIMIT else []
            seen.update(fresh)
            waiting.extend(fresh)
    return list(seen), most


def _describe(game: Game[Any], states: list[Any], max_outcomes: int) -> Survey:
    views = [[game.observation_text(state, player) for state in states] for player in range(game.num_players)]
    hides = any(len(set(texts)) < len(texts) for texts in views)
    texts = {text for view in views for text in view}
    heights = {text.count("\n") + 1 for text in texts}
    widths = {max(map(len, text.split("\n"))) for text in texts}
    size = max(heights) * (1 + (len(heights) > 1)), max(widths) * (1 + (len(widths) > 1))
    return Survey(max_outcomes, hides, size, frozenset("".join(texts)))
