"""Single transitions out of games, and the replay of them.

A transition leads from a decision of the policy to its next one, or to the end of the game. A game that was cut has not
ended, and where the policy itself forfeited it could have decided otherwise: both are decisions like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from nlrl.agents.language import NO_MOVE, Line
from nlrl.envs.game import Game
from nlrl.orchestration.lines import line_of_record
from nlrl.orchestration.replay import Item, choose
from nlrl.orchestration.session import Session
from nlrl.orchestration.stages import rollout


class Transition(NamedTuple):
    """What followed one decision."""

    line: Line
    """From the decision's state to that of the next decision, or to the end; `line.actions[0]` is what was decided."""
    ply: int
    """Moves that led to its state."""
    is_open: bool
    """Whether the policy has to decide again at its end."""


class Replayed(NamedTuple):
    """A transition that was chosen from the replay."""

    transition: Transition
    seen: float
    """How often it was met."""
    weight: float
    """How much it counts: that, corrected for the odds of being chosen."""


def transitions_of(game: Game[Any], record: Mapping[str, Any]) -> Iterator[Transition]:
    """The transitions of a game's record, in order. A reply that named no move is no action that could be judged."""
    line, seat = line_of_record(game, record), record["seat"]
    ours = [at for at, state in enumerate(line.states[:-1]) if game.current_player(state) == seat]
    for at, after in pairwise([*ours, len(line.actions)]):
        piece = Line(line.states[at : after + 1], line.actions[at:after])
        ended = game.is_terminal(piece.end)
        is_open = not ended and game.current_player(piece.end) == seat
        forfeited = not ended and not is_open and record["result"] == "win"
        if piece.actions[0] != NO_MOVE and (ended or is_open or forfeited):
            yield Transition(piece, at, is_open)


def replayed(session: Session, iteration: int) -> tuple[list[Replayed], dict[str, Any]]:
    """The transitions that are backed up in an iteration, and what the manifest says of the choice. Equal ones are one;
    it is of the newest iteration in which it was met."""
    config, known = session.config.nlac.replay, dict[tuple[Any, ...], Transition]()
    items = []
    for each in range(1 if config.kind == "prioritised" else iteration, iteration + 1):
        for record in session.folder.stage(each, rollout.NAME).records():
            for found in transitions_of(session.game, record):
                item = _item(session.game, found, each)
                items.append(item)
                known.setdefault((*item.about, item.text), found)
    seed = session.seed("transition replay", iteration)
    choice = choose(items, config, config.size or len(items), iteration, seed)
    chosen = [
        Replayed(known[(*one.item.about, one.item.text)], one.item.weight, one.weight)
        for one in sorted(choice.chosen, key=lambda one: (one.item.about, one.item.text))
    ]
    return chosen, choice.figures


def _item(game: Game[Any], found: Transition, iteration: int) -> Item:
    state, action = game.to_text(found.line.start), found.line.actions[0]
    return Item(state, action, outcome_text(game, found), iteration)


def outcome_text(game: Game[Any], found: Transition) -> str:
    """Tells transitions from the same state by the same move apart."""
    moves = " ".join(map(str, found.line.actions))
    return f"{moves}\n{game.to_text(found.line.end)}\n{'open' if found.is_open else 'over'}"
