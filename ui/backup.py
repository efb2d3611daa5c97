"""One language backup, step by step: games played on from a position, what is said of where they lead, G2, then G1.

Each step is an event, so that a page can show it as it happens. Whole games are merged by G1 as they are retold;
look-aheads end in a text of V, which G2 joins with what was played.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

from nlrl.agents.asking import ask
from nlrl.agents.roles import GAME_OVER, Roles, SampleKind, SamplesInput, StateInput
from nlrl.backbones.language_model import Sampling
from nlrl.envs.game import Game
from nlrl.envs.opponents import make_opponent
from nlrl.envs.random import Rng, derive_seed
from nlrl.errors import NLRLError
from nlrl.orchestration.lines import kept
from nlrl.orchestration.players import NONE, SELF, Play, PolicyPool, move_or_forfeit, play
from nlrl.ui.speakers import Opened

Step = Literal["game", "look-ahead", "V", "G2", "G1"]


class Event(NamedTuple):
    """One text on its way up."""

    step: Step
    sample: int
    """Which continuation it belongs to, from 0; -1 for G1, which merges all."""
    text: str
    verdict: float | None = None
    """From the view of the player to move where the backup starts: the score of a game, or what G1 ends with."""


@dataclass(frozen=True)
class Question:
    """What is backed up."""

    state: Any
    action: int | None = None
    """The first move of every continuation; None: the policy moves."""
    opponent: str = "random"
    continuations: int = 8
    lookahead: int | None = None
    """Moves before V is asked; None plays games to their ends."""
    temperature: float = 1.0
    seed: int = 0


def back_up(game: Game[Any], question: Question, player: Opened, teacher: Opened) -> Iterator[Event]:
    """Plays on, evaluates and merges, one event a text.

    Args:
        player: its actor plays, its critic is V.
        teacher: its base answers as G1 and G2.

    Raises:
        NLRLError: the game is over, or there is no such opponent.
    """
    from nlrl.orchestration.stages.outlooks import ahead_of, score_of, told
    from nlrl.orchestration.worker import Continuation

    if game.is_terminal(question.state):
        raise NLRLError("the game is over here: nothing can follow")
    language, mover = Roles(game, teacher.style).g1.language, game.current_player(question.state)
    samples: list[str] = []
    for number, one in enumerate(_continuations(game, question, player)):
        over = one.is_over(game)
        found = Continuation(tuple(one.actions), "over" if over else None, one.state, outcomes=kept(one.outcomes))
        ahead = ahead_of(game, question.state, found)
        if question.lookahead is None:
            samples.append(told(language, ahead))
            yield Event("game", number, samples[-1], score_of(language, ahead))
            continue
        yield Event("look-ahead", number, told(language, ahead))
        successor = GAME_OVER
        if not over:
            successor, verdict = _position_text(game, one.state, player)
            sign = 1.0 if game.current_player(one.state) == mover else -1.0
            yield Event("V", number, successor, None if verdict is None else sign * verdict)
        samples.append(_fused(game, ahead, successor, teacher))
        yield Event("G2", number, samples[-1])
    yield _merged(game, question, samples, teacher)


def _continuations(game: Game[Any], question: Question, player: Opened) -> Iterator[Play]:
    sampling = Sampling(temperature=question.temperature, max_tokens=player.max_tokens)
    role, opponent = Roles(game, player.style).policy, NONE if game.num_players == 1 else question.opponent
    seed = derive_seed("viewer's backup", question.seed)
    pool = PolicyPool(player.actor, role, sampling, seed, question.continuations, 0)
    opponents = {} if opponent in (SELF, NONE) else {opponent: make_opponent(opponent, game)}
    for number in range(question.continuations):
        rng = Rng(derive_seed(seed, number))
        one = Play(question.state, game.current_player(question.state), opponent, rng, longest=question.lookahead)
        if question.action is not None:
            move_or_forfeit(game, one, question.action)
        play(game, [one], pool, opponents, keep_replies=False)
        yield one


def _position_text(game: Game[Any], state: Any, player: Opened) -> tuple[str, float | None]:
    """What V says of a position, without its ending."""
    from nlrl.orchestration.stages.outlooks import text_of

    reads = player.critic.reads_expectations
    sampling = Sampling(temperature=0.0, max_tokens=player.max_tokens, expected_number=reads)
    reply = ask(player.critic, Roles(game, player.style).v, [StateInput(state)], sampling)[0]
    return text_of(reply), reply.output.verdict if reply.output else None


def _fused(game: Game[Any], ahead: Any, successor: str, teacher: Opened) -> str:
    """G2's text, as a run makes it: long lines are joined piece by piece."""
    from nlrl.orchestration.stages.outlooks import fuse

    session: Any = SimpleNamespace(
        teacher=teacher.base, teacher_roles=Roles(game, teacher.style), teacher_sampling=_greedy(teacher)
    )
    return fuse(session, [ahead], [successor])[0]


def _merged(game: Game[Any], question: Question, samples: list[str], teacher: Opened) -> Event:
    kind: SampleKind = "games" if question.lookahead is None else "outlooks"
    inp = SamplesInput(question.state, question.action, tuple(samples), kind)
    reply = ask(teacher.base, Roles(game, teacher.style).g1, [inp], _greedy(teacher))[0]
    return Event("G1", -1, reply.completion.text, reply.output.verdict if reply.output else None)


def _greedy(teacher: Opened) -> Sampling:
    return Sampling(temperature=0.0, max_tokens=teacher.max_tokens)
