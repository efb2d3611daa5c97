"""From games played on to texts about where they began: d, V or Q at the end, G2, and then G1. Every step is one batch
over all that is asked, and what is asked twice is asked once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from nlrl.agents.asking import Reply, ask
from nlrl.agents.language import GameLanguage, Line
from nlrl.agents.metrics.leaks import strip_leaks
from nlrl.agents.roles import (
    GAME_OVER,
    ActionInput,
    Evaluation,
    In,
    Out,
    Role,
    SamplesInput,
    StateInput,
    TransitionInput,
    body,
)
from nlrl.backbones.language_model import LanguageModel, Sampling
from nlrl.envs.game import Game
from nlrl.orchestration.lines import replay
from nlrl.orchestration.speakers import Speakers
from nlrl.orchestration.worker import Continuation


class Ahead(NamedTuple):
    """A game played on from `line.start`, to its end or not so far."""

    line: Line
    is_open: bool = False
    """Whether it could have gone on."""
    next_action: int | None = None
    """What the policy plays where an open one stops; None if it was not asked, and then V evaluates."""
    against: str = ""
    """The opponent, for critics that are told."""
    is_cut: bool = False
    """Whether it is known to have ended for want of moves; a whole game of the longest length is taken for cut, too."""


class Outlook(NamedTuple):
    """What G2 was given, and what it made of it."""

    played: str
    """The transition, retold by the descriptor."""
    successor: str
    """The evaluation of where it led."""
    text: str
    """G2's."""


def ahead_of(game: Game[Any], state: Any, found: Continuation, against: str = "") -> Ahead:
    """What a worker played on from a state."""
    line = replay(game, state, found.actions, found.outcomes)
    return Ahead(line, found.result is None, found.next_action, against, found.is_cut)


def told(language: GameLanguage, ahead: Ahead) -> str:
    """The descriptor: what was played, and how it ended if it did."""
    if ahead.is_open:
        return language.moves(ahead.line)
    return language.told(ahead.line, forfeited=_is_forfeit(language.game, ahead))


def score_of(language: GameLanguage, ahead: Ahead) -> float:
    """How a game that is over ended for the player who moved first, as a verdict."""
    player = language.game.current_player(ahead.line.start)
    return language.score(ahead.line, player, forfeited=_is_forfeit(language.game, ahead))


def _is_forfeit(game: Game[Any], ahead: Ahead) -> bool:
    """Whether a game that stopped did so because nobody moved."""
    cut = ahead.is_cut or len(ahead.line.actions) >= game.max_length
    return not cut and not game.is_terminal(ahead.line.end)


# -- the end, and G2 ---------------------------------------------------------------------------------------------------
def outlooks(session: Speakers, found: Sequence[Ahead], value: LanguageModel | None = None) -> list[Outlook]:
    """Of each what was played, what the critic says of where it led, and G2's text of both.

    Args:
        value: who evaluates; None is the critic.
    """
    ends = _end_texts(session, [one for one in found if one.is_open], value or session.critic)
    successors = [ends[_end_input(one)] if one.is_open else GAME_OVER for one in found]
    played = [told(session.teacher_roles.g2.language, one) for one in found]
    return list(map(Outlook, played, successors, fuse(session, found, successors)))


def fused(found: Iterable[Outlook]) -> list[dict[str, str]]:
    """What G2 was given for each of a record's samples, for the record: `samples` holds what it made of it."""
    return [{"played": one.played, "successor": one.successor} for one in found]


def fuse(session: Speakers, found: Sequence[Ahead], successors: Sequence[str]) -> list[str]:
    """G2's text of each, given the evaluation of its end. What is longer than the teacher was taught to join is joined
    piece by piece, from the last to the first."""
    language = session.teacher_roles.g2.language
    longest = language.longest_transition if session.teacher_roles.g2.style == "plain" else language.game.max_length
    pieces = [_pieces(one, longest) for one in found]
    texts = list(successors)
    for turn in range(max(map(len, pieces), default=0)):
        due = [i for i, parts in enumerate(pieces) if turn < len(parts)]
        inputs = [TransitionInput(pieces[i][turn].line.start, told(language, pieces[i][turn]), texts[i]) for i in due]
        replies = ask_once(session.teacher, session.teacher_roles.g2, inputs, session.teacher_sampling)
        for i, reply in zip(due, replies, strict=True):
            texts[i] = text_of(reply)
    return texts


def _pieces(ahead: Ahead, longest: int) -> list[Ahead]:
    """Consecutive parts, the last one first; all but the last are open."""
    states, actions = ahead.line
    parts, end = [], len(actions)
    while end > 0 or not parts:
        start = max(0, end - longest)
        line = Line(states[start : end + 1], actions[start:end])
        parts.append(ahead._replace(line=line) if not parts else Ahead(line, is_open=True))
        end = start
    return parts


def _end_input(ahead: Ahead) -> ActionInput | StateInput:
    if ahead.next_action is None:
        return StateInput(ahead.line.end, ahead.against)
    return ActionInput(ahead.line.end, ahead.next_action, ahead.against)


def _end_texts(session: Speakers, found: Iterable[Ahead], model: LanguageModel) -> dict[ActionInput | StateInput, str]:
    asked = list(dict.fromkeys(_end_input(one) for one in found))
    texts: dict[ActionInput | StateInput, str] = {}
    sampling = session.sampling(0.0, expected_number=model.reads_expectations)
    moves = [inp for inp in asked if isinstance(inp, ActionInput)]
    places = [inp for inp in asked if isinstance(inp, StateInput)]
    if moves:
        replies = ask(model, session.student_roles.q, moves, sampling)
        texts.update(zip(moves, map(text_of, replies), strict=True))
    if places:
        replies = ask(model, session.student_roles.v, places, sampling)
        texts.update(zip(places, map(text_of, replies), strict=True))
    return texts


def text_of(reply: Reply[Evaluation]) -> str:
    """What was said, without the machine-readable ending where it could be read."""
    return reply.output.text if reply.output else reply.completion.text


# -- G1 ----------------------------------------------------------------------------------------------------------------
def merge(session: Speakers, inputs: Sequence[SamplesInput], seeds: Sequence[int]) -> list[Reply[Evaluation]]:
    """G1's answers."""
    return ask(session.teacher, session.teacher_roles.g1, inputs, session.teacher_sampling, seeds)


def without_leaks(reply: Reply[Evaluation]) -> Evaluation | None:
    """What G1 said, less the sentences that cite what only G1 saw; None where it could not be read."""
    if reply.output is None:
        return None
    kept = strip_leaks(reply.completion.text)
    return replace(reply.output, text=body(kept)) if kept else reply.output


# -- asking ------------------------------------------------------------------------------------------------------------
def ask_once(model: LanguageModel, role: Role[In, Out], inputs: Sequence[In], sampling: Sampling) -> list[Reply[Out]]:
    """`ask` for greedy answers, where equal inputs have equal ones."""
    if not inputs:
        return []
    different = list(dict.fromkeys(inputs))
    replies = dict(zip(different, ask(model, role, different, sampling), strict=True))
    return [replies[inp] for inp in inputs]
