"""Evaluation of methods without a language critic: how strong the agent is, and nothing about texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nlrl.agents.asking import Reply
from nlrl.agents.roles import Choice
from nlrl.backbones.language_model import Completion
from nlrl.orchestration.exact import Turn, reachable_turns
from nlrl.orchestration.session import Session
from nlrl.orchestration.stages.evaluation import (
    NAME,
    exact_strength,
    games_said,
    greedy_replies,
    sampled_strength,
    turn_metrics,
)
from nlrl.orchestration.texts import argument_metrics

Chooser = Callable[[list[Turn]], Sequence[Reply[Choice]]]
"""The agent's answers on given turns."""


def run_strength(session: Session, iteration: int) -> dict[str, Any]:
    """Evaluates the current actor and commits the metrics; returns them."""
    stage = session.folder.stage(iteration, NAME)
    if stage.is_committed():
        return stage.load()["metrics"]
    greedy = greedy_replies(session, iteration)
    metrics = strength(session, greedy) | {"sampled": sampled_strength(session, stage, iteration)}
    return stage.commit(metrics | games_said(session, stage))["metrics"]


def run_chosen_strength(session: Session, iteration: int, choose: Chooser) -> dict[str, Any]:
    """The same for an agent that is no policy role: it chooses by `choose`. It plays no sampled games."""
    stage = session.folder.stage(iteration, NAME)
    if stage.is_committed():
        return stage.load()["metrics"]
    return stage.commit(strength(session, chosen(session, choose)))["metrics"]


def strength(session: Session, greedy: Mapping[Any, Reply[Choice]]) -> dict[str, Any]:
    """Exact results of an agent, how readable its answers were, and whether they hold to the rules."""
    return {
        "exact": exact_strength(session, greedy),
        "turns": turn_metrics(greedy.values()) | argument_metrics(session.game, greedy),
        "sampled": {},
        "texts": {},
    }


def chosen(session: Session, choose: Chooser) -> dict[Any, Reply[Choice]]:
    """The agent's answer in every state that it can meet in either seat, whatever its opponent plays."""
    game, replies = session.game, dict[Any, Reply[Choice]]()

    def moves(turns: list[Turn]) -> list[Iterable[int | None]]:
        new = [turn for turn in {turn.state: turn for turn in turns}.values() if turn.state not in replies]
        replies.update(zip((turn.state for turn in new), choose(new), strict=True))
        return [[move_of(replies[turn.state])] for turn in turns]

    reachable_turns(game, moves, [Turn(s, seat, 0) for s in game.initial_states() for seat in range(game.num_players)])
    return replies


def move_of(reply: Reply[Choice]) -> int | None:
    return reply.output.action if reply.output else None


def silent(action: int) -> Reply[Choice]:
    """The answer of an agent that chooses and says nothing."""
    return Reply(Choice(action, ""), Completion(""))
