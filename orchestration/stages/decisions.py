"""What a policy decided in an iteration's games, and how each decision turned out: what policy gradients and rejection
sampling learn from.

An outcome is the verdict of the rest of the game, from the view of the player who decided. It counts whoever made the
last move: where the opponent wins, the policy's last decision has lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nlrl.agents.language import GameLanguage, Line
from nlrl.envs.game import Game
from nlrl.errors import NLRLError
from nlrl.orchestration.config import RunConfig
from nlrl.orchestration.lines import line_of_record
from nlrl.orchestration.session import Session
from nlrl.orchestration.stages import rollout
from nlrl.orchestration.stages.rollout import run_rollout
from nlrl.orchestration.stages.training import check_native


class Decision(NamedTuple):
    """One answer of the policy in one game."""

    state: Any
    seat: int
    action: int | None
    """None where the answer named no legal move."""
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    outcome: float
    """In [-1, 1]."""


class Answer(NamedTuple):
    """Equal answers to one prompt."""

    decision: Decision
    """One of them."""
    count: int
    means: tuple[float, ...]
    """Of the numbers that were given for each."""


def run_sampled_rollout(session: Session, iteration: int) -> None:
    """The shared rollout, with tokens and log-probabilities in its records."""
    run_rollout(session, iteration, tokens=True)


def check_sampling(config: RunConfig, game: Game[Any]) -> None:
    """Refuses games at another temperature: log-probabilities are those at temperature 1. And what `check_native` does.

    Raises:
        NLRLError: names the field.
    """
    check_native(config, game)
    if config.rollout.temperature != 1:
        raise NLRLError(
            f"rollout.temperature is {config.rollout.temperature}: {config.method} weighs its answers by the "
            "probabilities they were sampled with, which are known at temperature 1.0"
        )


def games_of(session: Session, iteration: int) -> list[list[Decision]]:
    """The decisions of each of the iteration's games, in order."""
    language = session.student_roles.policy.language
    records = session.folder.stage(iteration, rollout.NAME).records()
    return [list(decisions(session.game, language, record)) for record in records]


def decisions(game: Game[Any], language: GameLanguage, record: Mapping[str, Any]) -> Iterator[Decision]:
    """The decisions of one game's record."""
    line, seat = line_of_record(game, record), record["seat"]
    for turn in sorted(record["turns"], key=lambda turn: turn["ply"]):
        at = turn["ply"]
        rest = Line(line.states[at:], line.actions[at:])
        action = line.actions[at] if at < len(line.actions) and line.actions[at] >= 0 else None
        sampled = tuple(turn.get("sampled", ())), tuple(turn.get("logprobs", ()))
        outcome = outcome_of(game, language, rest, record["result"], seat)
        yield Decision(line.states[at], seat, action, turn["reply"], *sampled, outcome)


def outcome_of(game: Game[Any], language: GameLanguage, line: Line, result: str, player: int) -> float:
    """The verdict of a finished line from a player's view; result: of the player whose policy is studied."""
    return language.score(line, player, is_forfeited(game, line, result))


def is_forfeited(game: Game[Any], line: Line, result: str | None) -> bool:
    """Whether a line ended because somebody gave no legal answer."""
    return result == "forfeit" or (result == "win" and not game.is_terminal(line.end))


def rewards_of(outcomes: Sequence[float]) -> list[float]:
    """What each decision of a game earned up to the next one, given what followed each: on a board nothing, until the
    last one earns the result; in a maze the steps in between."""
    return [now - later for now, later in zip(outcomes, [*outcomes[1:], 0.0], strict=True)]


def gathered(found: Iterable[tuple[Decision, Sequence[float]]]) -> list[Answer]:
    """Decisions with some numbers each, equal answers made one; in the order in which they first appear."""
    groups: dict[tuple[Any, ...], list[tuple[Decision, Sequence[float]]]] = {}
    for decision, numbers in found:
        groups.setdefault((decision.state, decision.seat, decision.text, decision.tokens), []).append(
            (decision, numbers)
        )
    return [
        Answer(
            group[0][0],
            len(group),
            tuple(sum(column) / len(group) for column in zip(*(n for _, n in group), strict=True)),
        )
        for group in groups.values()
    ]
