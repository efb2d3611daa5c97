"""Lines of play as records keep them: the actions, and where chance had a say what it chose.

`outcomes` holds, for each action, which of `Game.transitions` came about. Games without chance keep none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nlrl.agents.language import NO_MOVE, Line
from nlrl.envs.game import Game, Step
from nlrl.envs.random import Rng


def step_of(game: Game[Any], state: Any, action: int | None, rng: Rng) -> tuple[Step[Any], int | None] | None:
    """What follows an action (None: a reply that names no legal one), and which of its outcomes that is (None: the only
    one); None for a forfeit."""
    if action is None:
        lost = game.invalid_step(state)
        return None if lost is None else (lost, None)
    step = game.apply(state, action, rng)
    return step, None if step.probability == 1 else game.transitions(state, action).index(step)


def kept(outcomes: Sequence[int | None]) -> tuple[int, ...] | None:
    """What a record keeps of outcomes: nothing if chance had no say."""
    return None if all(outcome is None for outcome in outcomes) else tuple(outcome or 0 for outcome in outcomes)


def replay(game: Game[Any], start: Any, actions: Sequence[int], outcomes: Sequence[int] | None = None) -> Line:
    """The line that was played.

    Args:
        actions: `NO_MOVE` for replies that named no legal one.
        outcomes: None in games without chance.

    Raises:
        ValueError: an action is illegal where it stands.
    """
    states = [start]
    for index, action in enumerate(actions):
        states.append(_after(game, states[-1], action, outcomes[index] if outcomes else None).state)
    return Line(tuple(states), tuple(actions))


def _after(game: Game[Any], state: Any, action: int, outcome: int | None) -> Step[Any]:
    if action == NO_MOVE:
        lost = game.invalid_step(state)
        if lost is None:
            raise ValueError(f"{game.spec}: a reply without a legal move is a forfeit here, not a step")
        return lost
    return game.apply(state, action) if outcome is None else game.transitions(state, action)[outcome]


def line_of_record(game: Game[Any], record: Mapping[str, Any]) -> Line:
    """The line of a game's record."""
    return replay(game, game.parse_text(record["start"]), record["actions"], record.get("outcomes"))
